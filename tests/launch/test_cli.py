"""The command as a user meets it: exit codes, one line on stderr, nothing half-made."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launching import ROOT, environment, malmoi


def refused(*words: str, cwd: Path | None = None) -> str:
    """The one line that a refused command line leaves on stderr."""
    done = malmoi(*words, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_help_answers_at_once_and_names_every_command() -> None:
    malmoi("--help")
    fastest = 99.0
    for _ in range(5):
        began = time.perf_counter()
        done = malmoi("--help")
        fastest = min(fastest, time.perf_counter() - began)
    assert done.returncode == 0
    for name in (
        "tokenizer",
        "prepare",
        "verify",
        "inspect",
        "train",
        "generate",
        "evaluate",
        "fewshot",
        "quality",
        "report",
        "doctor",
        "slurm",
    ):
        assert f"  {name} " in done.stdout
    imported = malmoi_imports("--help")
    assert not imported & {"torch", "transformers", "tokenizers", "numpy", "rich", "jsonargparse", "yaml"}, fastest


def malmoi_imports(*words: str) -> set[str]:
    """Top-level modules that a command line imports."""
    import subprocess
    import sys

    from tests.launching import environment

    script = "import sys; from launch.cli import main; main(); print('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment(), capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "command", ["tokenizer", "prepare", "train", "generate", "evaluate", "fewshot", "quality", "inspect", "verify"]
)
def test_each_command_lists_its_settings(command: str) -> None:
    done = malmoi(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"malmoi {command}" in done.stdout


@pytest.mark.parametrize("words", [(), ("slurm",), ("judge",)])
def test_a_command_that_is_not_whole_is_bad_usage_and_help_is_not(words: tuple[str, ...]) -> None:
    bare, asked = malmoi(*words), malmoi(*words, "--help")
    assert (bare.returncode, bare.stdout) == (2, "")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert bare.stderr == asked.stdout and bare.stderr.startswith(f"usage: {' '.join(('malmoi', *words))} ")


def test_unknown_names_are_refused_with_their_nearest_neighbour(tmp_path: Path) -> None:
    assert "no command 'trian'; did you mean 'train'? See `malmoi --help`" in refused("trian")
    assert "no command 'xyzzy'. See `malmoi --help`" in refused("xyzzy")
    assert "no command 'judge xyzzy'. See `malmoi judge --help`" in refused("judge", "xyzzy")
    assert "unknown setting '--train.stepz'; did you mean '--train.steps'?" in refused("train", "--train.stepz", "3")
    assert "unknown setting '--confg'; did you mean '--config'?" in refused("train", "--confg", "demo")
    assert "train.learning_rate -1.0: choose a number from 0" in refused("train", "--train.learning_rate", "-1")
    assert "no preset of that name; did you mean 'gpt2-small'?" in refused("train", "--config", "gpt2-smal")
    file = tmp_path / "c.yaml"
    file.write_text("run: x\ntrain:\n  setps: 3\n")
    assert f"{file}:3: unknown setting 'train.setps'; did you mean 'train.steps'?" in refused(
        "train", "--config", str(file)
    )
    file.write_text("run: [\n")
    assert f"{file}:2: no valid YAML" in refused("train", "--config", str(file))
    file.write_text("- 1\n")
    assert f"{file}:1: no settings" in refused("train", "--config", str(file))


def test_a_value_of_the_wrong_type_is_refused() -> None:
    assert "train.steps" in refused("train", "--train.steps", "many")


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
    made = malmoi("tokenizer", "--input", str(corpus_file), "--vocab_size", "2000", "--out", tokenizer)
    assert made.stdout.strip() == tokenizer, made.stderr
    assert "holds a tokenizer already" in refused("tokenizer", "--input", str(corpus_file), "--out", tokenizer)
    made = malmoi("prepare", "--input", str(corpus_file), "--tokenizer", tokenizer, "--out", out, "--held_out", "0.1")
    folder = Path(made.stdout.strip())
    assert folder.parent == Path(out), made.stderr
    assert malmoi("verify", out).returncode == 0
    shown = malmoi("inspect", out)
    assert shown.returncode == 0, shown.stderr
    assert "bytes a token" in shown.stdout
    document = malmoi("inspect", out, "--document", "0")
    assert document.stdout.startswith("<s>"), document.stderr
    assert "documents 0 to" in refused("inspect", out, "--document", "100000")


def test_verify_finds_damage_in_shards_checkpoint_and_model(finished_run: Path, tmp_path: Path) -> None:
    assert "a checkpoint, whole" in malmoi("verify", str(finished_run / "checkpoints" / "step-000020")).stdout
    assert "a model, whole" in malmoi("verify", str(finished_run / "model")).stdout
    for kind, file in (("checkpoints/step-000020", "optimizer.safetensors"), ("model", "model.safetensors")):
        copy = tmp_path / Path(kind).name
        shutil.copytree(finished_run / kind, copy)
        damaged = bytearray((copy / file).read_bytes())
        damaged[len(damaged) // 2] ^= 16
        (copy / file).write_bytes(damaged)
        assert f"{copy / file}: its content changed" in refused("verify", str(copy))
    assert "name one of these" in refused("verify", str(tmp_path))


def test_evaluate_prints_one_json_object(finished_run: Path, corpus_file: Path, tmp_path: Path) -> None:
    done = malmoi("evaluate", "--model", str(finished_run / "model"), "--data", str(corpus_file), "--json")
    assert done.returncode == 0, done.stderr
    score = json.loads(done.stdout)
    assert set(score) == {"loss", "perplexity", "bits_per_byte", "tokens", "bytes"}
    assert 1.0 < score["bits_per_byte"] < 4.0
    (tmp_path / "a.txt").write_text("영화가 재미있다\n또 보고 싶다\n")
    (tmp_path / "b.txt").write_bytes("영화가 재미있다\n또 보고 싶다\n".encode("cp949"))
    words = ("evaluate", "--model", str(finished_run / "model"), "--json", "--data")
    assert "b.txt:1: not UTF-8" in refused(*words, str(tmp_path / "b.txt"))
    as_cp949 = malmoi(*words, str(tmp_path / "b.txt"), "--encoding", "cp949")
    assert json.loads(as_cp949.stdout) == json.loads(malmoi(*words, str(tmp_path / "a.txt")).stdout)


def test_a_tokenizer_that_does_not_fit_the_shards_is_refused(
    finished_run: Path, corpus_file: Path, tmp_path: Path
) -> None:
    other, out = str(tmp_path / "other"), str(tmp_path / "shards")
    malmoi("tokenizer", "--input", str(corpus_file), "--vocab_size", "1900", "--out", other)
    malmoi("prepare", "--input", str(corpus_file), "--tokenizer", other, "--out", out, "--held_out", "0.2")
    words = ("--model", str(finished_run / "model"), "--data", out)
    assert "made with another tokenizer" in refused("evaluate", *words)


def test_presets_are_complete_and_parse() -> None:
    from configs.command_line import parse_settings, preset_names
    from configs.schema import RunSettings

    expected = {"demo", "tutorial", "gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl"}
    expected |= {f"gpt3-{size}" for size in ("small", "medium", "large", "xl", "2.7b", "6.7b", "13b")}
    assert set(preset_names()) == expected
    for name in expected:
        settings = parse_settings(RunSettings, ["--config", name], "malmoi train", "")
        assert settings.model.n_embd % settings.model.n_head == 0
        assert settings.train.global_batch % settings.train.micro_batch == 0
        by_path = parse_settings(RunSettings, ["--config", str(ROOT / "configs" / f"{name}.yaml")], "malmoi train", "")
        assert by_path == settings


def test_offload_without_zero_is_refused(tmp_path: Path) -> None:
    words = ("train", "--config", "demo", "--run", str(tmp_path / "run"), "--parallel.offload", "true")
    assert "parallel.offload: the backend is single, which keeps all on its device" in refused(*words)


def test_ctrl_c_is_one_line_and_an_exit_code_of_its_own(tmp_path: Path) -> None:
    """While the command waits for its prompts, from a pipe into which nobody writes."""
    prompts = tmp_path / "prompts"
    os.mkfifo(prompts)
    words = ["generate", "--model", str(tmp_path), "--prompts_file", str(prompts)]
    command = [sys.executable, "-m", "launch", *words]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while True:
            try:
                writer = os.open(prompts, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                assert time.monotonic() < deadline, "nobody reads the prompts"
                time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        os.close(writer)
    assert (process.returncode, said) == (130, "malmoi generate: interrupted\n")
