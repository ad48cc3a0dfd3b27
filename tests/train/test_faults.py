"""Things that go wrong while a run trains, each for real in processes of its own."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from configs.command_line import settings_as_yaml
from configs.schema import RunSettings
from tests.launching import ROOT, as_flags, environment, malmoi, metrics, step_losses
from train.checkpoint import checkpoint_faults, checkpoint_folders

FAULTY = str(ROOT / "tests" / "train" / "faulty.py")


@pytest.fixture(scope="module")
def config(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One micro-batch an update on each of two ranks, saved every five steps; dropout included."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    settings = replace(
        tiny_settings,
        model=replace(tiny_settings.model, dropout=0.1),
        train=replace(tiny_settings.train, micro_batch=4, save_every=5, evaluate_every=0, keep_last=2),
    )
    file.write_text(settings_as_yaml(settings))
    return file


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = on_two_ranks("-m", "train", *as_flags(config, run=folder))
    assert done.returncode == 0, done.stderr
    return folder


def torchrun(*words: str, restarts: int = 0) -> list[str]:
    """A command line that starts two ranks."""
    elastic = ["--standalone", "--nproc_per_node", "2", "--max_restarts", str(restarts)]
    # After `--` torchrun takes no word of the script for an abbreviation of its own.
    script = ["-m", "--", *words[1:]] if words[0] == "-m" else ["--", *words]
    return [sys.executable, "-m", "torch.distributed.run", *elastic, *script]


def on_two_ranks(*words: str, restarts: int = 0, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun(*words, restarts=restarts),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def faulty_alone(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FAULTY, *words], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def require_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def events(run: Path, kind: str) -> list[str]:
    return [line["text"] for line in metrics(run) if line.get("event") == kind]


def test_a_gradient_that_is_no_number_on_one_rank_skips_the_step_on_all(config: Path, tmp_path: Path) -> None:
    done = on_two_ranks(FAULTY, "nan", "1", "7", *as_flags(config, run=tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert [line["skipped_steps"] for line in lines] == [0] * 6 + [1] * 14
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())
    # The learning rate is that of the updates that were made.
    assert lines[7]["lr"] == lines[6]["lr"]


def test_updates_that_stay_not_finite_go_back_and_pass_over_the_samples(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = as_flags(config, run=folder, train__divergence__nonfinite_steps=3)
    done = on_two_ranks(FAULTY, "nan", "0", "11-13", *flags)
    assert done.returncode == 0, done.stderr
    (text,) = events(folder, "rollback")
    assert text == (
        "step 13: 3 updates in a row whose loss or gradient was not finite; back to step 10, past those samples"
    )
    lines = [line for line in metrics(folder) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 21)), "steps that were gone back over are done again"
    assert lines[-1]["tokens"] == (20 + 3) * 8 * 32


def test_what_is_seen_an_update_late_ends_in_the_same_weights(config: Path, tmp_path: Path) -> None:
    """A logged step is seen to at once; with none but the last, gradients are made before the fault is seen."""
    for every in (1, 20):
        flags = as_flags(
            config, run=tmp_path / str(every), train__log_every=every, train__divergence__nonfinite_steps=3
        )
        done = on_two_ranks(FAULTY, "nan", "0", "12-14", *flags)
        assert done.returncode == 0, done.stderr
    assert events(tmp_path / "20", "rollback") == events(tmp_path / "1", "rollback") != []
    require_same_weights(tmp_path / "20", tmp_path / "1")


def test_a_spike_of_the_loss_goes_back_so_often_and_no_further(config: Path, tmp_path: Path) -> None:
    spike = {"spike_deviations": 20.0, "spike_window": 4, "rollbacks": 2}
    flags = as_flags(config, run=tmp_path / "run", **{f"train__divergence__{name}": v for name, v in spike.items()})
    done = on_two_ranks(FAULTY, "spike", "1", "11-100", *flags)
    assert done.returncode == 1
    assert len(events(tmp_path / "run", "rollback")) == 2
    assert "after 2 rollbacks; lower train.learning_rate, in another --run if its checkpoints" in done.stderr


def test_a_run_that_goes_on_knows_a_spike_from_its_first_step(config: Path, tmp_path: Path) -> None:
    spike = {"train__divergence__spike_deviations": 20.0, "train__divergence__spike_window": 4}
    first = malmoi("train", *as_flags(config, run=tmp_path / "run", train__steps=8, **spike))
    assert first.returncode == 0, first.stderr
    words = as_flags(config, run=tmp_path / "run", train__steps=12, **spike)
    done = faulty_alone("spike", "0", "1-2", *words)
    assert done.returncode == 0, done.stderr
    (text,) = events(tmp_path / "run", "rollback")
    assert text.startswith("step 9: a loss of") and text.endswith("back to step 8, past those samples")


def test_a_run_that_was_stopped_on_a_full_disk_does_not_say_that_it_is_saved(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Room for one checkpoint of about 1.1 MB, and the fault asks to stop after it.
    with mounted(folder / "checkpoints", "size=1800k"):
        words = as_flags(config, run=folder, train__micro_batch=8)
        done = faulty_alone("stop", "0", "8", *words)
    assert done.returncode == 1
    said = done.stderr.replace("\n", " ")
    assert "stopped by SIGTERM after step 8, whose checkpoint could not be saved: the newest is of step 5" in said
    assert "Traceback" not in said


def test_a_rank_that_raises_takes_the_run_down_and_its_traceback_is_shown(config: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    done = on_two_ranks(FAULTY, "raise", "1", "4", *as_flags(config, run=tmp_path / "run"), timeout=90)
    assert done.returncode == 1
    assert time.monotonic() - began < 90
    assert "[rank1]: RuntimeError: a fault on purpose" in done.stderr


def test_a_stalled_rank_ends_the_run_with_every_ranks_stacks(config: Path, tmp_path: Path) -> None:
    flags = as_flags(config, run=tmp_path / "run", parallel__hang_seconds=8)
    done = on_two_ranks(FAULTY, "stall", "1", "4", *flags, timeout=120)
    assert done.returncode == 1
    # The rank that sleeps, and the one that waits for it.
    assert done.stderr.count("Timeout (0:00:08)!") >= 1
    assert "faulty.py" in done.stderr
    assert "train/loop.py" in done.stderr


def test_a_rank_that_dies_is_started_again_by_torchrun_and_goes_on(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    done = on_two_ranks(FAULTY, "die", "1", "8", *as_flags(config, run=tmp_path / "run"), restarts=1)
    assert done.returncode == 0, done.stderr
    assert events(tmp_path / "run", "restart") == [
        f"going on from step 5 ({tmp_path / 'run' / 'checkpoints' / 'step-000005'})"
    ]
    assert step_losses(tmp_path / "run") == step_losses(undisturbed)
    require_same_weights(tmp_path / "run", undisturbed)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A tmpfs of its own at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root and the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_run_alive_and_the_last_checkpoint_whole(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Room for one checkpoint of about 1.1 MB.
    with mounted(folder / "checkpoints", "size=1800k"):
        done = malmoi("train", *as_flags(config, run=folder))
        assert done.returncode == 0, done.stderr
        assert "step-000010: not saved" in done.stderr.replace("\n", "")
        (kept,) = checkpoint_folders(folder / "checkpoints")
        assert kept.name == "step-000005"
        assert not checkpoint_faults(kept)
        assert [entry.name for entry in (folder / "checkpoints").iterdir()] == ["step-000005"]
    assert weights(folder)


def test_a_checkpoint_that_the_disk_has_no_room_for_after_the_last_look_is_told(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    file, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    file.write_text(settings_as_yaml(tiny_settings))
    # Room for one checkpoint; the last look asks for another of the same step, beside the first.
    with mounted(folder / "checkpoints", "size=1800k"):
        flags = as_flags(file, run=folder, train__steps=3, train__save_every=0, train__keep_best=1)
        done = malmoi("train", *flags)
        assert done.returncode == 0, done.stderr
        assert done.stderr.replace("\n", "").count("step-000003: not saved") == 1
        assert [entry.name for entry in (folder / "checkpoints").iterdir()] == ["step-000003"]


def test_a_full_disk_at_the_export_is_told_in_one_line_and_the_run_goes_on_from_there(
    config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "disk" / "run"
    with mounted(tmp_path / "disk", "size=1300k"):
        flags = as_flags(config, run=folder, train__steps=5, train__trackers="[]", data__cache=tmp_path / "cache")
        full = malmoi("train", *flags)
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        shown = full.stderr.replace("\n", "")
        assert f"{folder}/.model.writing: No space left on device; make room or name another place" in shown
        assert not (folder / "result.json").exists()
        subprocess.run(["mount", "-o", "remount,size=9m", str(tmp_path / "disk")], check=True)
        done = malmoi("train", *flags)
        assert done.returncode == 0, done.stderr
        assert "going on from step 5" in done.stderr.replace("\n", "")


def test_a_full_disk_has_no_room_for_a_tokenizer_and_that_is_one_line(korean_texts: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(korean_texts))
    with mounted(tmp_path / "disk", "size=40k"):
        out = tmp_path / "disk" / "tokenizer"
        done = malmoi("tokenizer", "--input", str(text), "--vocab_size", "3000", "--out", str(out))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "No space left on device; make room or name another place, and run again" in done.stderr
        assert not out.exists()


def test_a_model_that_has_gone_wrong_is_not_exported(config: Path, tmp_path: Path) -> None:
    flags = as_flags(config, run=tmp_path / "run", train__steps=3, train__learning_rate=1e30, train__warmup_steps=0)
    done = malmoi("train", *flags)
    assert done.returncode == 1
    assert "step 3: the held-out loss is nan, so no model is exported" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "run" / "model").exists()


def test_fewer_steps_than_are_done_are_refused(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns("model", "result.json"))
    done = malmoi("train", *as_flags(config, run=tmp_path / "run", train__steps=12))
    assert done.returncode == 2
    assert "step-000020: is beyond the 12 steps that the settings now give; raise train.steps" in done.stderr


def test_where_no_checkpoint_is_whole_it_says_that_it_begins_anew(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns("model", "result.json"))
    for file in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        file.write_text("{")
    done = malmoi("train", *as_flags(config, run=tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "no checkpoint is whole: beginning anew" in done.stderr
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == list(range(1, 21))


def test_a_read_only_folder_is_named(config: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "read_only", "ro"):
        done = malmoi("train", *as_flags(config, run=tmp_path / "read_only" / "run"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "read_only/run: cannot be made (Read-only file system); choose another --run" in done.stderr


def test_a_flipped_bit_in_the_newest_checkpoint_costs_steps_and_no_correctness(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("model", "result.json"))
    newest = folder / "checkpoints" / "step-000020" / "optimizer.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-9] ^= 4
    newest.write_bytes(damaged)
    done = malmoi("train", *as_flags(config, run=folder))
    assert done.returncode == 0, done.stderr
    shown = done.stderr.replace("\n", "")
    assert "passed over a damaged checkpoint" in shown
    assert "going on from step 15" in shown
    ours, theirs = step_losses(folder), step_losses(undisturbed)
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) < 5e-6


def test_changed_data_are_gone_on_with_where_that_is_asked_for(
    config: Path, undisturbed: Path, korean_texts: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("model", "result.json", "step-000020"))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in korean_texts[:150]))
    flags = as_flags(config, run=folder, corpus__input=f"[{other}]")
    refused = malmoi("train", *flags)
    assert refused.returncode == 2
    assert "--train.accept_changed_data true" in refused.stderr
    done = malmoi("train", *flags, "--train.accept_changed_data=true")
    assert done.returncode == 0, done.stderr
    assert "going on from step 15" in done.stderr.replace("\n", "")


def test_the_largest_micro_batch_that_fits_is_found_and_the_run_is_the_same(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text(settings_as_yaml(tiny_settings))
    runs = [tmp_path / "set", tmp_path / "found"]
    assert malmoi("train", *as_flags(file, run=runs[0], train__micro_batch=4, train__steps=5)).returncode == 0
    words = as_flags(file, run=runs[1], train__micro_batch="auto", train__steps=5)
    done = faulty_alone("oom", "0", "0", *words)
    assert done.returncode == 0, done.stderr
    assert "(2 samples x 1 ranks x 4 accumulated)" in done.stderr.replace("\n", " ")
    ours, theirs = (step_losses(run) for run in runs)
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) < 5e-6


def kill_and_go_on(config: Path, folder: Path, kills: int, seed: int) -> None:
    """Train on two ranks to the end through so many SIGKILLs, of one rank or of all, at random moments."""
    chance = random.Random(seed)
    flags = as_flags(config, run=folder, train__save_every=2)
    done = 0
    while done < kills:
        process = subprocess.Popen(
            torchrun("-m", "train", *flags),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        before = len(step_lines(folder)) if (folder / "metrics.jsonl").is_file() else 0
        deadline = time.monotonic() + 120
        wanted = before + chance.randint(1, 3)
        while process.poll() is None and time.monotonic() < deadline:
            if (folder / "metrics.jsonl").is_file() and len(step_lines(folder)) >= wanted:
                break
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        if process.poll() is not None:
            break
        ranks = ranks_of(process.pid)
        if chance.random() < 0.5 and ranks:
            os.kill(chance.choice(ranks), signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            for rank in ranks:
                kill_if_alive(rank)
        process.wait(timeout=60)
        done += 1
        for checkpoint in checkpoint_folders(folder / "checkpoints"):
            assert not checkpoint_faults(checkpoint), f"after kill {done}"
    finished = on_two_ranks("-m", "train", *flags)
    assert finished.returncode == 0, finished.stderr


def step_lines(folder: Path) -> list[str]:
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def ranks_of(agent: int) -> list[int]:
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(child) for child in children]


def kill_if_alive(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_at_random_moments_a_run_ends_in_the_same_bytes(
    config: Path, undisturbed: Path, tmp_path: Path, kills: int
) -> None:
    # 20 steps hold few kills; a soak's run is longer, and compared with one of its own length.
    steps: Sequence[str] = () if kills == 5 else ("--train.steps=150",)
    folder, reference = tmp_path / "run", undisturbed
    config_of_run = config
    if steps:
        reference = tmp_path / "reference"
        assert on_two_ranks("-m", "train", *as_flags(config, run=reference), *steps).returncode == 0
        text = config.read_text().replace("steps: 20", "steps: 150")
        config_of_run = tmp_path / "long.yaml"
        config_of_run.write_text(text)
    kill_and_go_on(config_of_run, folder, kills, seed=kills)
    assert step_losses(folder) == step_losses(reference)
    require_same_weights(folder, reference)
