"""The command line: exit codes, one line on stderr, nothing half-written."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from malmoi.checked_json import checked_json
from malmoi.data_prep.pipeline.fingerprint import MEMORY_FILE
from malmoi.launch.commands.verify import run_errors
from tests.launching import ROOT, environment, run_malmoi
from tests.time_limits import seconds, wait_until


def refused(*words: str, cwd: Path | None = None) -> str:
    """The one line that a refused command line leaves on stderr."""
    done = run_malmoi(*words, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


COMMANDS = (
    *("tokenizer", "prepare", "verify", "inspect", "train", "finetune", "generate", "evaluate", "fewshot", "quality"),
    *("judge", "report", "slurm", "doctor"),
)
NOT_RECORDED = {".training.lock"}
"""Files of a run folder that hold nothing."""
SLOW_IMPORTS = {"torch", "transformers", "tokenizers", "numpy", "rich", "jsonargparse", "yaml", "logging"}


def test_help_names_every_command_and_imports_nothing_slow() -> None:
    done = run_malmoi("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    script = "import sys; from malmoi.launch.cli import main; main(); print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], env=environment(), capture_output=True, text=True, check=True
    )
    imported = {name.split(".")[0] for name in done.stderr.split()}
    assert "malmoi" in imported and not imported & SLOW_IMPORTS


WAYS_TO_TRAIN = {
    "malmoi train": (str(Path(sys.executable).parent / "malmoi"), "train"),
    "python -m malmoi.train": (sys.executable, "-m", "malmoi.train"),
    "python -m train": (sys.executable, "-m", "train"),
}


def trained_by(way: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one of `WAYS_TO_TRAIN`, without the checkout in the search path."""
    variables = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    command = [*WAYS_TO_TRAIN[way], *words]
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=seconds(120), check=False
    )


def test_every_way_to_train_is_the_same_command() -> None:
    shown = [trained_by(way, "--help", cwd=ROOT) for way in WAYS_TO_TRAIN]
    assert [done.returncode for done in shown] == [0, 0, 0], shown[-1].stderr
    assert shown[0].stdout == shown[1].stdout == shown[2].stdout
    assert shown[0].stdout.startswith("usage: malmoi train ")


@pytest.mark.parametrize("way", ["malmoi train", "python -m malmoi.train"])
def test_a_users_own_modules_in_the_current_folder_do_not_shadow_ours(way: str, tmp_path: Path) -> None:
    for name in ("train", "launch", "configs", "data_prep", "inference", "evaluation"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} is shadowed')\n", encoding="utf-8")
    done = trained_by(way, "--run", "run", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "corpus.input is empty" in done.stderr


PLUGIN_COMMANDS = ("tokenizer", "prepare", "train", "finetune", "generate", "evaluate", "quality", "fewshot")


@pytest.mark.parametrize("command", PLUGIN_COMMANDS)
def test_a_command_imports_its_plugins_first(command: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit(7)\n", encoding="utf-8")
    done = run_malmoi(command, "--plugins", "[mine]", cwd=tmp_path)
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("slurm", "judge")])
def test_each_command_lists_its_settings(command: str) -> None:
    done = run_malmoi(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"malmoi {command}" in done.stdout


@pytest.mark.parametrize("words", [(), ("slurm",), ("judge",)])
def test_an_incomplete_command_is_bad_usage_and_help_is_not(words: tuple[str, ...]) -> None:
    bare, asked = run_malmoi(*words), run_malmoi(*words, "--help")
    assert (bare.returncode, bare.stdout) == (2, "")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert bare.stderr == asked.stdout and bare.stderr.startswith(f"usage: {' '.join(('malmoi', *words))} ")


def test_unknown_names_are_refused_with_their_nearest_name(tmp_path: Path) -> None:
    assert "no command 'trian'; did you mean 'train'? See `malmoi --help`" in refused("trian")
    assert "no command 'xyzzy'. See `malmoi --help`" in refused("xyzzy")
    assert "no command 'judge xyzzy'. See `malmoi judge --help`" in refused("judge", "xyzzy")
    assert "unknown setting '--train.max_stepz'; did you mean '--train.max_steps'?" in refused(
        "train", "--train.max_stepz", "3"
    )
    assert "unknown setting '--confg'; did you mean '--config'?" in refused("train", "--confg", "demo")
    assert "optim.lr -1: give" in refused("train", "--optim.lr", "-1")
    assert "no preset of that name; did you mean 'gpt2-small'?" in refused("train", "--config", "gpt2-smal")
    file = tmp_path / "c.yaml"
    file.write_text("run: x\ntrain:\n  max_setps: 3\n", encoding="utf-8")
    assert f"{file}:3: unknown setting 'train.max_setps'; did you mean 'train.max_steps'?" in refused(
        "train", "--config", str(file)
    )
    file.write_text("run: [\n", encoding="utf-8")
    assert f"{file}:2: no valid YAML" in refused("train", "--config", str(file))
    file.write_text("- 1\n", encoding="utf-8")
    assert f"{file}:1: no settings" in refused("train", "--config", str(file))


def test_a_value_of_the_wrong_type_is_refused() -> None:
    assert "train.max_steps" in refused("train", "--train.max_steps", "many")


def write(folder: Path, content: bytes, name: str = "corpus.jsonl") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


BAD_CORPORA: dict[str, tuple[str, bytes, str]] = {
    "empty": ("c.txt", b"", "no text to train a tokenizer on"),
    "blank": ("c.txt", b"\n  \n", "no text to train a tokenizer on"),
    "cp949": ("c.txt", "똠방각하\n펲시콜라\n".encode("cp949"), "c.txt:1: not UTF-8 at byte 0; it looks like CP949"),
    "broken_utf8": ("c.txt", "가\n".encode() + b"\xff\xfe\xff\n", "c.txt:2: not UTF-8 at byte 4"),
    "broken_json": ("c.jsonl", b'{"text": "a"}\n{"text": \n', "c.jsonl:2: broken JSON"),
    "no_field": ("c.jsonl", b'{"body": "a"}\n', "c.jsonl:1: no field 'text' (it has 'body'); set --text_field"),
    "no_text": ("c.jsonl", b'{"text": 5}\n', "c.jsonl:1: field 'text' holds int"),
    "surrogate": ("c.jsonl", b'{"text": "\\ud83d"}\n', "c.jsonl:1: half of a surrogate pair"),
    "format": ("c.docx", b"PK", "c.docx: no reader for this format"),
    "gzip": ("c.jsonl.gz", b"\x1f\x8b\x08\x00broken", "c.jsonl.gz: damaged gz"),
}


@pytest.mark.parametrize("kind", BAD_CORPORA)
def test_a_bad_corpus_is_named_with_its_place_and_nothing_stays(kind: str, tmp_path: Path) -> None:
    name, content, message = BAD_CORPORA[kind]
    file = write(tmp_path, content, name)
    out = tmp_path / "out"
    assert message in refused("tokenizer", "--input", str(file), "--vocab_size", "2000", "--out", str(out))
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if "building" in path.name]


def test_missing_paths_are_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.txt")
    assert f"{missing}: no such file or folder" in refused(
        "tokenizer", "--input", missing, "--out", str(tmp_path / "o")
    )
    assert "no file to be read in this folder" in refused(
        "tokenizer", "--input", str(tmp_path), "--out", str(tmp_path / "o")
    )
    assert "--input and --out missing" in refused("tokenizer")
    assert "no such model folder" in refused("generate", "--model", missing)
    assert "no such folder" in refused("verify", missing)
    assert "corpus.input is empty" in refused("train", "--run", str(tmp_path / "run"))


def test_a_vocabulary_smaller_than_the_alphabet_is_refused(corpus_file: Path, tmp_path: Path) -> None:
    words = ("--input", str(corpus_file), "--vocab_size", "100", "--out", str(tmp_path / "t"))
    assert "vocab_size 100 is smaller than the alphabet" in refused("tokenizer", *words)


def test_text_goes_to_shards_by_hand(corpus_file: Path, tmp_path: Path) -> None:
    tokenizer, out = str(tmp_path / "tokenizer"), str(tmp_path / "shards")
    made = run_malmoi("tokenizer", "--input", str(corpus_file), "--vocab_size", "2000", "--out", tokenizer)
    assert made.stdout.strip() == tokenizer, made.stderr
    assert "holds a tokenizer already" in refused("tokenizer", "--input", str(corpus_file), "--out", tokenizer)
    made = run_malmoi(
        "prepare", "--input", str(corpus_file), "--tokenizer", tokenizer, "--out", out, "--val_fraction", "0.1"
    )
    folder = Path(made.stdout.strip())
    assert folder.parent == Path(out), made.stderr
    assert run_malmoi("verify", out).returncode == 0
    shown = run_malmoi("inspect", out)
    assert shown.returncode == 0, shown.stderr
    assert "bytes a token" in shown.stdout
    document = run_malmoi("inspect", out, "--document", "0")
    assert document.stdout.startswith("<s>"), document.stderr
    assert "documents 0 to" in refused("inspect", out, "--document", "100000")


def test_verify_finds_damage_in_shards_checkpoint_and_model(finished_run: Path, tmp_path: Path) -> None:
    for folder, kind in (("checkpoints/step-000020", "checkpoint"), ("model", "model")):
        assert run_malmoi("verify", str(finished_run / folder)).stdout == f"{finished_run / folder}: valid {kind}\n"
    for kind, file in (("checkpoints/step-000020", "optimizer.safetensors"), ("model", "model.safetensors")):
        copy = tmp_path / Path(kind).name
        shutil.copytree(finished_run / kind, copy)
        damaged = bytearray((copy / file).read_bytes())
        damaged[len(damaged) // 2] ^= 16
        (copy / file).write_bytes(damaged)
        assert f"{copy / file}: its content changed" in refused("verify", str(copy))
    assert "name one of these" in refused("verify", str(tmp_path))


def test_verify_of_a_run_finds_damage_in_each_of_its_files(finished_run: Path, tmp_path: Path) -> None:
    assert run_malmoi("verify", str(finished_run)).stdout == f"{finished_run}: valid run\n"
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    # Shards of its own, as a run has them whose settings name no other folder.
    (run / "shards").mkdir(exist_ok=True)
    (run / "shards" / MEMORY_FILE).write_bytes(checked_json({"files": {}}))
    checked = [file for file in run.rglob("*") if file.is_file() and file.name not in NOT_RECORDED]
    checked = [file for file in checked if "tensorboard" not in file.parts]
    assert {file.name for file in checked} >= {"config.yaml", "environment.json", "metrics.jsonl", "result.json"}
    assert {file.name for file in checked} >= {"state.json", "files.json", "model.safetensors", "tokenizer.json"}
    assert MEMORY_FILE in {file.name for file in checked}
    for file in checked:
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 16
        file.write_bytes(damaged)
        said = list(run_errors(run))
        assert any(str(file) in line for line in said), file
        file.write_bytes(content)
    assert list(run_errors(run)) == []


def test_evaluate_prints_one_json_object(finished_run: Path, corpus_file: Path, tmp_path: Path) -> None:
    done = run_malmoi("evaluate", "--model", str(finished_run / "model"), "--data", str(corpus_file), "--json")
    assert done.returncode == 0, done.stderr
    score = json.loads(done.stdout)
    assert set(score) == {"loss", "perplexity", "bits_per_byte", "tokens", "bytes"}
    assert 1.0 < score["bits_per_byte"] < 4.0
    (tmp_path / "a.txt").write_text("영화가 재미있다\n또 보고 싶다\n", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("영화가 재미있다\n또 보고 싶다\n".encode("cp949"))
    words = ("evaluate", "--model", str(finished_run / "model"), "--json", "--data")
    assert "b.txt:1: not UTF-8" in refused(*words, str(tmp_path / "b.txt"))
    as_cp949 = run_malmoi(*words, str(tmp_path / "b.txt"), "--encoding", "cp949")
    assert json.loads(as_cp949.stdout) == json.loads(run_malmoi(*words, str(tmp_path / "a.txt")).stdout)


def test_a_tokenizer_that_does_not_fit_the_shards_is_refused(
    finished_run: Path, corpus_file: Path, tmp_path: Path
) -> None:
    other, out = str(tmp_path / "other"), str(tmp_path / "shards")
    run_malmoi("tokenizer", "--input", str(corpus_file), "--vocab_size", "1900", "--out", other)
    run_malmoi("prepare", "--input", str(corpus_file), "--tokenizer", other, "--out", out, "--val_fraction", "0.2")
    words = ("--model", str(finished_run / "model"), "--data", out)
    assert "made with another tokenizer" in refused("evaluate", *words)


def test_presets_are_complete_and_parse() -> None:
    from malmoi.configs.parser import parse_settings, preset_names
    from malmoi.configs.run import RunSettings

    expected = {"demo", "tutorial", "gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl"}
    expected |= {f"gpt3-{size}" for size in ("small", "medium", "large", "xl", "2.7b", "6.7b", "13b")}
    expected |= {"smollm-135m", "smollm-360m", "tinyllama-1.1b", "qwen3-0.6b"}
    assert set(preset_names()) == expected
    for name in expected:
        settings = parse_settings(RunSettings, ["--config", name], "malmoi train", "")
        assert settings.model.n_embd % settings.model.n_head == 0
        assert settings.train.global_batch_size % settings.train.micro_batch_size == 0
        by_path = parse_settings(RunSettings, ["--config", str(ROOT / "configs" / f"{name}.yaml")], "malmoi train", "")
        assert by_path == settings


def test_offload_without_zero_is_refused(tmp_path: Path) -> None:
    words = ("train", "--config", "demo", "--run", str(tmp_path / "run"), "--parallel.offload", "true")
    assert "parallel.offload: the backend is single, which keeps everything on its device" in refused(*words)


def test_ctrl_c_is_one_line_and_an_exit_code_of_its_own(tmp_path: Path, finished_run: Path) -> None:
    """While the command waits for its prompts, from a pipe into which nobody writes."""
    prompts = tmp_path / "prompts"
    os.mkfifo(prompts)
    words = ["generate", "--model", str(finished_run / "model"), "--prompts_file", str(prompts)]
    command = [sys.executable, "-m", "malmoi.launch", *words]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        writers: list[int] = []

        def is_read() -> bool:
            with contextlib.suppress(OSError):
                writers.append(os.open(prompts, os.O_WRONLY | os.O_NONBLOCK))
            return bool(writers)

        wait_until(is_read, 60, "the command reads its prompts")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=seconds(30))
        os.close(writers[0])
    assert (process.returncode, said) == (130, "malmoi generate: interrupted\n")


@pytest.mark.parametrize("part", [".", "checkpoints"])
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_run_folder_that_cannot_be_written_to_is_one_line(part: str, tmp_path: Path, finished_run: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder, ignore=shutil.ignore_patterns("result.json"))
    place = folder / part
    place.chmod(0o555)
    # Root may write anywhere unless it gives that up.
    drop = "-dac_override,-dac_read_search"
    words = ["setpriv", f"--bounding-set={drop}", "--inh-caps=-all"] if os.geteuid() == 0 else []
    flags = ("--config", str(folder / "config.yaml"), "--run", str(folder))
    try:
        done = subprocess.run(
            [*words, sys.executable, "-m", "malmoi.train", *flags],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=seconds(60),
            check=False,
        )
    finally:
        place.chmod(0o755)
    assert done.returncode == 2
    refused = "cannot be written to; change its permissions, or choose another --run"
    assert done.stderr == f"malmoi train: {place}: {refused}\n"
