import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import configs.commands
import configs.finetune_settings
import configs.schema
from configs.command_line import config_path, parse_settings, setting_names, settings_as_yaml
from configs.commands import GenerateOptions, SlurmOptions, TokenizerOptions
from configs.errors import BadInput
from configs.finetune_settings import FinetuneSettings
from configs.schema import RunSettings, SourceSettings


def parse(*words: str) -> RunSettings:
    return parse_settings(RunSettings, words, "malmoi train", "")


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("run: mine\ntrain:\n  steps: 7\n  learning_rate: 1e-4\n")
    settings = parse("--config", str(file), "--train.steps", "9", "--model.n_layer=3")
    assert (settings.run, settings.train.steps, settings.train.learning_rate) == ("mine", 9, 1e-4)
    assert settings.model.n_layer == 3
    assert settings.model.n_head == RunSettings().model.n_head


def test_settings_written_as_yaml_are_read_back_the_same(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    base = parse("--config", "tutorial", "--corpus.input", "[가.txt, b*.jsonl]", "--train.steps", "3")
    sources = (SourceSettings("뉴스", ("n.txt",), 2.0), SourceSettings("book", ("b.txt", "c.txt")))
    settings = dataclasses.replace(base, corpus=dataclasses.replace(base.corpus, sources=sources))
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    assert parse("--config", str(file)) == settings
    assert set(yaml.safe_load(file.read_text())) == {field.name for field in dataclasses.fields(RunSettings)}


@pytest.mark.parametrize(("written", "meant"), [("true", True), ("false", False), ("auto", "auto")])
def test_a_setting_that_is_true_false_or_auto_is_written_in_yaml_as_yaml_writes_it(
    written: str, meant: bool | str, tmp_path: Path
) -> None:
    run, cluster = tmp_path / "run.yaml", tmp_path / "cluster.yaml"
    run.write_text(f"data: {{shared_filesystem: {written}}}\n")
    cluster.write_text(f"shared_disk: {written}\n")
    assert parse_settings(RunSettings, ["--config", str(run)], "p", "").data.shared_filesystem == meant
    assert parse_settings(SlurmOptions, ["--config", str(cluster)], "p", "").shared_disk == meant
    assert parse_settings(SlurmOptions, ["--shared_disk", written], "p", "").shared_disk == meant


def test_lists_take_words_in_a_row_and_switches_none() -> None:
    words = ["--input", "a.txt", "b c.txt", "--vocab_size", "5", "--out", "o"]
    options = parse_settings(TokenizerOptions, words, "malmoi tokenizer", "", lists=("input",))
    assert options.input == ("a.txt", "b c.txt")
    assert options.vocab_size == 5
    options = parse_settings(GenerateOptions, ["--json", "--model", "m"], "malmoi generate", "")
    assert options.json
    assert options.model == "m"
    assert not parse_settings(GenerateOptions, ["--json", "false"], "malmoi generate", "").json


@pytest.mark.parametrize("kind", [RunSettings, FinetuneSettings])
def test_the_help_of_a_run_shows_every_setting(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(kind, ["--help"], "malmoi", "")
    shown = capsys.readouterr().out
    for name in setting_names(kind):
        assert f"--{name}" in shown


@pytest.mark.parametrize("module", [configs.schema, configs.finetune_settings, configs.commands])
def test_every_setting_has_its_line_of_documentation(module: ModuleType) -> None:
    assert module.__file__ is not None
    source = Path(module.__file__).read_text().splitlines()
    for number, line in enumerate(source):
        if line.startswith("    ") and ": " in line and not line.strip().startswith(("@", '"', "#")) and "=" in line:
            assert source[number + 1].strip().startswith('"""'), line


def test_a_setting_that_fine_tuning_has_no_use_for_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^train\.evaluate_tokens 5: .* reads the whole validation file; leave it out"):
        parse_settings(FinetuneSettings, ["--train.evaluate_tokens", "5"], "malmoi finetune", "")


def test_a_preset_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path("gpt3-2.7b").name == "gpt3-2.7b.yaml"
    assert config_path("configs/demo.yaml").is_file()
    (tmp_path / "demo").write_text("run: x\n")
    assert config_path("demo") == Path("demo")
    with pytest.raises(BadInput, match="nope: no such file, and no preset of that name"):
        config_path("nope")


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--train.steps", "abc", "train.steps abc: give a whole number or null; see --help"),
        ("--train.micro_batch", "foo", "train.micro_batch foo: give a whole number or auto; see --help"),
        ("--train.learning_rate", "x", "train.learning_rate x: give a number; see --help"),
        ("--train.profile", "x", r"train.profile x: give a list, as \[a, b\]; see --help"),
    ],
)
def test_a_value_of_another_type_is_told_in_words(flag: str, value: str, said: str) -> None:
    with pytest.raises(BadInput, match=f"^{said}$"):
        parse_settings(RunSettings, [flag, value], "malmoi train", "")
