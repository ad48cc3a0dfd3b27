"""Things that go wrong while a run trains, each for real in processes of its own."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.train.checkpoint.format import checkpoint_errors, checkpoint_names
from malmoi.train.checkpoint.storage import LocalStorage
from malmoi.train.distributed.watchdog import REPORT_SECONDS
from tests.launching import ROOT, as_flags, environment, metrics, run_malmoi, step_losses, with_settings
from tests.time_limits import seconds, wait_until

FAULTY = str(ROOT / "tests" / "train" / "faulty.py")


@pytest.fixture(scope="module")
def config(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One micro-batch a step on each of two ranks, a checkpoint every five steps; dropout included."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    settings = with_settings(
        tiny_settings, model__dropout=0.1, checkpoint__every=5, checkpoint__keep_last=2, eval__every=0
    )
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
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
        timeout=seconds(timeout),
        check=False,
    )


def faulty_alone(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FAULTY, *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds(120),
        check=False,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def require_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def events(run: Path, kind: str) -> list[str]:
    return [line["text"] for line in metrics(run) if line.get("event") == kind]


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(config: Path, tmp_path: Path) -> None:
    done = on_two_ranks(FAULTY, "nan", "1", "7", *as_flags(config, run=tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    lines = [line for line in metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["train/skipped_steps"] for line in lines] == [0] * 6 + [1] * 14
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())
    # The learning rate is that of the steps that were not skipped.
    assert lines[7]["train/lr"] == lines[6]["train/lr"]


def test_steps_that_stay_not_finite_roll_back_and_skip_the_samples(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = as_flags(config, run=folder, rollback__max_nonfinite_steps=3)
    done = on_two_ranks(FAULTY, "nan", "0", "11-13", *flags)
    assert done.returncode == 0, done.stderr
    (text,) = events(folder, "rollback")
    assert text == (
        "step 13: 3 steps in a row whose loss or gradient was not finite; back to step 10, skipping those samples"
    )
    lines = [line for line in metrics(folder) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 21)), "steps that were rolled back are done again"
    assert lines[-1]["tokens_seen"] == (20 + 3) * 8 * 32


def test_a_pending_step_that_is_checked_late_ends_in_the_same_weights(config: Path, tmp_path: Path) -> None:
    """A logged step is checked at once; where only the last is, gradients are made before the fault is seen."""
    for every in (1, 20):
        flags = as_flags(config, run=tmp_path / str(every), log__every=every, rollback__max_nonfinite_steps=3)
        done = on_two_ranks(FAULTY, "nan", "0", "12-14", *flags)
        assert done.returncode == 0, done.stderr
    assert events(tmp_path / "20", "rollback") == events(tmp_path / "1", "rollback") != []
    require_same_weights(tmp_path / "20", tmp_path / "1")


def test_a_loss_spike_rolls_back_as_often_as_allowed_and_then_fails(config: Path, tmp_path: Path) -> None:
    spike = {"rollback__spike_zscore": 20.0, "rollback__spike_window": 4, "rollback__max_rollbacks": 2}
    flags = as_flags(config, run=tmp_path / "run", **spike)
    done = on_two_ranks(FAULTY, "spike", "1", "11-100", *flags)
    assert done.returncode == 1
    assert len(events(tmp_path / "run", "rollback")) == 2
    assert "after 2 rollbacks; lower optim.lr, in another --run if its checkpoints" in done.stderr


def test_a_resumed_run_knows_a_spike_from_its_first_step(config: Path, tmp_path: Path) -> None:
    spike = {"rollback__spike_zscore": 20.0, "rollback__spike_window": 4}
    first = run_malmoi("train", *as_flags(config, run=tmp_path / "run", train__max_steps=8, **spike))
    assert first.returncode == 0, first.stderr
    words = as_flags(config, run=tmp_path / "run", train__max_steps=12, **spike)
    done = faulty_alone("spike", "0", "1-2", *words)
    assert done.returncode == 0, done.stderr
    (text,) = events(tmp_path / "run", "rollback")
    assert text.startswith("step 9: a loss of") and text.endswith("back to step 8, skipping those samples")


def test_a_run_that_was_stopped_on_a_full_disk_does_not_say_that_it_is_saved(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Room for one checkpoint of about 1.1 MB, and the fault asks to stop after it.
    with mounted(folder / "checkpoints", "size=1800k"):
        words = as_flags(config, run=folder, train__micro_batch_size=8)
        done = faulty_alone("stop", "0", "8", *words)
    assert done.returncode == 1
    said = done.stderr.replace("\n", " ")
    assert "stopped by SIGTERM after step 8, whose checkpoint could not be saved: the newest is of step 5" in said
    assert "Traceback" not in said


def test_a_rank_that_raises_takes_the_run_down_and_its_traceback_is_shown(config: Path, tmp_path: Path) -> None:
    """Within the time limit, where the other rank would wait for half an hour."""
    done = on_two_ranks(FAULTY, "raise", "1", "4", *as_flags(config, run=tmp_path / "run"), timeout=90)
    assert done.returncode == 1
    assert "[rank1]: RuntimeError: a fault on purpose" in done.stderr


def test_a_stalled_rank_ends_the_run_which_says_who_did_not_come_and_shows_the_stacks_of_every_rank(
    config: Path, tmp_path: Path
) -> None:
    patience = round(seconds(2))
    flags = as_flags(config, run=tmp_path / "run", parallel__watchdog_timeout=patience)
    done = on_two_ranks(FAULTY, "stall", "1", "4", *flags, timeout=120 + patience)
    assert done.returncode == 1
    # The rank that sleeps, and the one that waits for it.
    assert done.stderr.count(f"Timeout ({timedelta(seconds=patience + REPORT_SECONDS)})!") >= 1
    (line,) = [each for each in done.stderr.splitlines() if "no progress" in each]
    assert re.search(r"rank 0 came to all_?reduce number \d+ of group 0, of \[.*\]; rank 1 did not", line)
    assert len(list((tmp_path / "run" / "hang").iterdir())) == 2
    assert "faulty.py" in done.stderr
    assert "train/trainer.py" in done.stderr


def test_a_rank_that_dies_is_started_again_by_torchrun_and_resumes(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    done = on_two_ranks(FAULTY, "die", "1", "8", *as_flags(config, run=tmp_path / "run"), restarts=1)
    assert done.returncode == 0, done.stderr
    assert events(tmp_path / "run", "resume") == [
        f"resuming from step 5 ({tmp_path / 'run' / 'checkpoints' / 'step-000005'})"
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


def test_a_full_disk_leaves_the_run_alive_and_the_last_checkpoint_valid(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Room for one checkpoint of about 1.1 MB.
    with mounted(folder / "checkpoints", "size=1800k"):
        done = run_malmoi("train", *as_flags(config, run=folder))
        assert done.returncode == 0, done.stderr
        assert "step-000010: not saved" in done.stderr.replace("\n", "")
        assert checkpoint_names(LocalStorage(str(folder / "checkpoints"))) == ["step-000005"]
        assert not checkpoint_errors(folder / "checkpoints" / "step-000005")
        assert [entry.name for entry in (folder / "checkpoints").iterdir()] == ["step-000005"]
    assert weights(folder)


def test_a_checkpoint_that_the_disk_has_no_room_for_after_the_last_evaluation_is_reported(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    file, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    file.write_text(settings_as_yaml(tiny_settings), encoding="utf-8")
    # Room for one checkpoint; the last evaluation asks for another of the same step, beside the first.
    with mounted(folder / "checkpoints", "size=1800k"):
        flags = as_flags(file, run=folder, train__max_steps=3, checkpoint__every=0, checkpoint__keep_best=1)
        done = run_malmoi("train", *flags)
        assert done.returncode == 0, done.stderr
        assert done.stderr.replace("\n", "").count("step-000003: not saved") == 1
        assert [entry.name for entry in (folder / "checkpoints").iterdir()] == ["step-000003"]


def test_a_full_disk_at_the_export_is_reported_in_one_line_and_the_run_resumes_from_there(
    config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "disk" / "run"
    with mounted(tmp_path / "disk", "size=1300k"):
        flags = as_flags(config, run=folder, train__max_steps=5, log__trackers="[]", data__cache=tmp_path / "cache")
        full = run_malmoi("train", *flags)
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        shown = full.stderr.replace("\n", "")
        assert f"{folder}/.model.writing: No space left on device; make room or name another place" in shown
        assert not (folder / "result.json").exists()
        subprocess.run(["mount", "-o", "remount,size=9m", str(tmp_path / "disk")], check=True)
        done = run_malmoi("train", *flags)
        assert done.returncode == 0, done.stderr
        assert "resuming from step 5" in done.stderr.replace("\n", "")


def test_a_full_disk_has_no_room_for_a_tokenizer_and_that_is_one_line(korean_texts: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(korean_texts), encoding="utf-8")
    with mounted(tmp_path / "disk", "size=40k"):
        out = tmp_path / "disk" / "tokenizer"
        done = run_malmoi("tokenizer", "--input", str(text), "--vocab_size", "3000", "--out", str(out))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "No space left on device; make room or name another place, and run again" in done.stderr
        assert not out.exists()


def test_a_diverged_model_is_not_exported(config: Path, tmp_path: Path) -> None:
    flags = as_flags(config, run=tmp_path / "run", train__max_steps=3, optim__lr=1e30, schedule__warmup_steps=0)
    done = run_malmoi("train", *flags)
    assert done.returncode == 1
    assert "step 3: the validation loss is nan, so no model is exported" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "run" / "model").exists()


def test_fewer_steps_than_are_done_are_refused(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns("model", "result.json"))
    done = run_malmoi("train", *as_flags(config, run=tmp_path / "run", train__max_steps=12))
    assert done.returncode == 2
    assert "step-000020: is beyond the 12 steps that the settings give; raise train.max_steps" in done.stderr


def test_where_no_checkpoint_is_valid_the_run_says_that_it_starts_from_step_0(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns("model", "result.json"))
    for file in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        file.write_text("{", encoding="utf-8")
    done = run_malmoi("train", *as_flags(config, run=tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "no checkpoint is valid: starting from step 0" in done.stderr
    assert [line["step"] for line in metrics(tmp_path / "run") if "train/loss" in line] == list(range(1, 21))


def test_a_read_only_folder_is_named(config: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "read_only", "ro"):
        done = run_malmoi("train", *as_flags(config, run=tmp_path / "read_only" / "run"))
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
    done = run_malmoi("train", *as_flags(config, run=folder))
    assert done.returncode == 0, done.stderr
    shown = done.stderr.replace("\n", "")
    assert "skipped a damaged checkpoint" in shown
    assert "resuming from step 15" in shown
    ours, theirs = step_losses(folder), step_losses(undisturbed)
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) < 5e-6


def test_a_run_resumes_with_changed_data_where_that_is_allowed(
    config: Path, undisturbed: Path, korean_texts: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("model", "result.json", "step-000020"))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in korean_texts[:150]), encoding="utf-8")
    flags = as_flags(config, run=folder, corpus__input=f"[{other}]")
    refused = run_malmoi("train", *flags)
    assert refused.returncode == 2
    assert "--checkpoint.allow_data_change true" in refused.stderr
    assert f"(corpus: {other} added, " in refused.stderr and " removed)" in refused.stderr
    done = run_malmoi("train", *flags, "--checkpoint.allow_data_change=true")
    assert done.returncode == 0, done.stderr
    assert "resuming from step 15" in done.stderr.replace("\n", "")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (resumed,) = (record["text"] for record in records if record.get("event") == "resume")
    assert f"; other data (corpus: {other} added, " in resumed


def test_the_largest_micro_batch_that_fits_is_found_and_the_run_is_the_same(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text(settings_as_yaml(tiny_settings), encoding="utf-8")
    runs = [tmp_path / "set", tmp_path / "found"]
    done = run_malmoi("train", *as_flags(file, run=runs[0], train__micro_batch_size=4, train__max_steps=5))
    assert done.returncode == 0, done.stderr
    words = as_flags(file, run=runs[1], train__micro_batch_size="auto", train__max_steps=5)
    done = faulty_alone("oom", "0", "0", *words)
    assert done.returncode == 0, done.stderr
    assert "(2 samples x 1 rank x 4 accumulated)" in done.stderr.replace("\n", " ")
    ours, theirs = (step_losses(run) for run in runs)
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) < 5e-6


def kill_and_resume(config: Path, folder: Path, kills: int, seed: int) -> None:
    """Train on two ranks to the end through so many SIGKILLs, of one rank or of all, at random moments."""
    chance = random.Random(seed)
    flags = as_flags(config, run=folder, checkpoint__every=2)
    done = 0
    while done < kills:
        process = subprocess.Popen(
            torchrun("-m", "train", *flags),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wanted = len(step_lines(folder)) + chance.randint(1, 3)

        def is_there(process: subprocess.Popen[bytes] = process, wanted: int = wanted) -> bool:
            return process.poll() is not None or len(step_lines(folder)) >= wanted

        wait_until(is_there, 120, f"{wanted} lines of {folder}")
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
        process.wait(timeout=seconds(60))
        done += 1
        for name in checkpoint_names(LocalStorage(str(folder / "checkpoints"))):
            assert not checkpoint_errors(folder / "checkpoints" / name), f"after kill {done}"
    finished = on_two_ranks("-m", "train", *flags)
    assert finished.returncode == 0, finished.stderr


def step_lines(folder: Path) -> list[str]:
    """The logged steps of a run that may be training, or may not have begun."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line for line in lines if '"train/loss"' in line]


def ranks_of(agent: int) -> list[int]:
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text(encoding="utf-8").split()
    return [int(child) for child in children]


def kill_if_alive(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_at_random_moments_a_run_ends_in_the_same_bytes(
    config: Path, undisturbed: Path, tmp_path: Path, kills: int
) -> None:
    # 20 steps hold few kills; a soak's run is longer, and compared with one of its own length.
    steps: Sequence[str] = () if kills == 5 else ("--train.max_steps=150",)
    folder, reference = tmp_path / "run", undisturbed
    config_of_run = config
    if steps:
        reference = tmp_path / "reference"
        assert on_two_ranks("-m", "train", *as_flags(config, run=reference), *steps).returncode == 0
        text = config.read_text(encoding="utf-8").replace("max_steps: 20", "max_steps: 150")
        assert "max_steps: 150" in text
        config_of_run = tmp_path / "long.yaml"
        config_of_run.write_text(text, encoding="utf-8")
    kill_and_resume(config_of_run, folder, kills, seed=kills)
    assert step_losses(folder) == step_losses(reference)
    require_same_weights(folder, reference)
