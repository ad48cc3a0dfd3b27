import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import malmoi.configs
from malmoi.configs.commands import GenerateOptions, SlurmOptions, TokenizerOptions
from malmoi.configs.corpus import SourceSettings
from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.outputs import EvalSettings
from malmoi.configs.parser import (
    config_path,
    load_config,
    load_finetune_config,
    parse_settings,
    setting_names,
    settings_as_yaml,
)
from malmoi.configs.run import RunSettings
from malmoi.errors import UserError


def parse(*words: str) -> RunSettings:
    return parse_settings(RunSettings, words, "malmoi train", "")


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("run: mine\ntrain:\n  max_steps: 7\noptim:\n  lr: 1e-4\n", encoding="utf-8")
    settings = parse("--config", str(file), "--train.max_steps", "9", "--model.n_layer=3")
    assert (settings.run, settings.train.max_steps, settings.optim.lr) == ("mine", 9, 1e-4)
    assert settings.model.n_layer == 3
    assert settings.model.n_head == RunSettings().model.n_head


def test_settings_written_as_yaml_are_read_back_the_same(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    base = parse("--config", "tutorial", "--corpus.input", "[가.txt, b*.jsonl]", "--train.max_steps", "3")
    sources = (SourceSettings("뉴스", ("n.txt",), 2.0), SourceSettings("book", ("b.txt", "c.txt")))
    settings = dataclasses.replace(base, corpus=dataclasses.replace(base.corpus, sources=sources))
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    assert parse("--config", str(file)) == settings
    assert set(yaml.safe_load(file.read_text(encoding="utf-8"))) == {
        field.name for field in dataclasses.fields(RunSettings)
    }


@pytest.mark.parametrize(("written", "meant"), [("true", True), ("false", False), ("auto", "auto")])
def test_a_setting_that_is_true_false_or_auto_is_written_in_yaml_as_yaml_writes_it(
    written: str, meant: bool | str, tmp_path: Path
) -> None:
    run, cluster = tmp_path / "run.yaml", tmp_path / "cluster.yaml"
    run.write_text(f"data: {{shared_filesystem: {written}}}\n")
    cluster.write_text(f"shared_filesystem: {written}\n")
    assert parse_settings(RunSettings, ["--config", str(run)], "p", "").data.shared_filesystem == meant
    assert parse_settings(SlurmOptions, ["--config", str(cluster)], "p", "").shared_filesystem == meant
    assert parse_settings(SlurmOptions, ["--shared_filesystem", written], "p", "").shared_filesystem == meant


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


SETTINGS_MODULES = sorted(
    file
    for file in Path(malmoi.configs.__path__[0]).glob("*.py")
    if file.stem not in ("__init__", "parser", "ranges", "renamed", "validate", "yaml_settings")
)


@pytest.mark.parametrize("module", SETTINGS_MODULES, ids=lambda file: file.stem)
def test_every_setting_has_its_line_of_documentation(module: Path) -> None:
    source = module.read_text(encoding="utf-8").splitlines()
    documented = 0
    for number, line in enumerate(source):
        if line.startswith("    ") and ": " in line and not line.strip().startswith(("@", '"', "#")) and "=" in line:
            assert source[number + 1].strip().startswith('"""'), line
            documented += 1
    assert documented


def test_fine_tuning_refuses_a_setting_of_pre_training_alone() -> None:
    with pytest.raises(UserError, match=r"^unknown setting '--eval\.tokens'"):
        parse_settings(FinetuneSettings, ["--eval.tokens", "5"], "malmoi finetune", "")


def test_a_preset_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path("gpt3-2.7b").name == "gpt3-2.7b.yaml"
    assert config_path("configs/demo.yaml").is_file()
    (tmp_path / "demo").write_text("run: x\n", encoding="utf-8")
    assert config_path("demo") == Path("demo")
    with pytest.raises(UserError, match="nope: no such file, and no preset of that name"):
        config_path("nope")


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("train.max_steps", "abc", "a whole number of 1 or more, or null"),
        ("train.micro_batch_size", "foo", "a whole number of 1 or more, or auto"),
        ("optim.lr", "x", "a finite number of 0 or more"),
        ("log.profile_steps", "x", "a list, each a whole number of 1 or more, as [a, b]"),
        ("optim.betas", "[0.9]", "a list of 2, each a number from 0 to below 1, as [a, b]"),
        ("train.precision", "int8", "auto, fp32, bf16 or fp16"),
        ("train.compile", "maybe", "true or false"),
        ("log.tracker_args", "3", "a mapping, as {name: value}"),
        ("data.shared_filesystem", "x", "true or false, or auto"),
    ],
)
def test_a_value_of_another_type_is_refused_in_words(flag: str, value: str, allowed: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_settings(RunSettings, [f"--{flag}", value], "malmoi train", "")
    assert str(refused.value) == f"{flag} {value}: give {allowed}; see --help"


def test_the_weight_of_a_source_is_named() -> None:
    with pytest.raises(UserError, match=r"^corpus\.sources: weight -1: give a finite number of 0 or more; see --help$"):
        parse("--corpus.sources", "[{name: a, input: [b], weight: -1}]")


def test_help_says_types_in_words_and_the_built_in_names_of_a_registry(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Peak learning rate. (type: a finite number of 0 or more, default: 0.0006)" in shown
    assert "(type: adamw, muon, or another registered name, default: adamw)" in shown
    assert "Literal" not in shown


def test_a_name_that_a_plugin_may_register_is_left_to_the_registry() -> None:
    assert parse("--optim.name", "lion").optim.name == "lion"


def test_load_config_takes_groups_and_dotted_names_alike(tmp_path: Path) -> None:
    expected = parse("--config", "demo", "--run", "3", "--train.max_steps", "50", "--optim.lr", "1e-5")
    assert load_config("demo", run="3", train={"max_steps": 50}, optim={"lr": 1e-5}) == expected
    assert load_config("demo", {"train.max_steps": 50, "optim.lr": 1e-5}, run="3") == expected
    assert load_config("demo", run="3", train__max_steps=50, optim__lr=1e-5) == expected
    assert load_config("demo", run=Path("3"), train=expected.train, optim=expected.optim) == expected
    file = tmp_path / "mine.yaml"
    file.write_text("run: mine\noptim: {lr: 2}\n", encoding="utf-8")
    assert load_config(file, optim={"lr": 1}).optim.lr == 1


def test_load_config_without_a_file_starts_from_the_defaults() -> None:
    assert load_config() == RunSettings()
    sources = (SourceSettings("가", ("a.txt",), 2.0), SourceSettings("b", ("b: c.txt", "null")))
    assert load_config(corpus={"sources": sources}).corpus.sources == sources
    # Text stays text: YAML would read these as a number and a truth value.
    settings = load_config(None, {"run": "1e3", "generate.prompt": "yes"})
    assert (settings.run, settings.generate.prompt) == ("1e3", "yes")
    assert load_finetune_config(init_from="m", task={"train": "t.jsonl"}).task.train == "t.jsonl"


def test_load_config_refuses_what_yaml_cannot_hold() -> None:
    with pytest.raises(UserError, match="give plain numbers, texts, lists and mappings"):
        load_config("demo", run=object())


def test_a_trackers_argument_is_set_by_its_dotted_name_beside_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("log:\n  tracker_args: {wandb: {entity: team, mode: offline}}\n", encoding="utf-8")
    words = ("--config", str(file), "--log.tracker_args.wandb.entity", "other", "--log.tracker_args.mlflow.run_name=x")
    assert parse(*words).log.tracker_args == {
        "wandb": {"entity": "other", "mode": "offline"},
        "mlflow": {"run_name": "x"},
    }


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_a_file_without_settings_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"^\S+empty\.yaml:1: no settings; write"):
        load_config(file)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"name": "a", "input": ["x"], "weigth": 2},
            "unknown 'weigth' in an entry; did you mean 'weight'? Known: name, ",
        ),
        (
            {"name": "a", "inputs": ["x"]},
            "unknown 'inputs' in an entry; did you mean 'input'? Known: name, input, weight",
        ),
        ({"name": "a", "q": 1, "input": ["x"]}, "unknown 'q' in an entry. Known: name, input, weight"),
        ({"name": "a"}, "an entry lacks input; give it"),
        ({"name": "a", "input": ["x"], "weight": "q"}, "weight q: give a finite number of 0 or more"),
    ],
)
def test_a_wrong_key_of_a_source_is_named_wherever_it_is_given(
    entry: dict[str, object], message: str, tmp_path: Path
) -> None:
    sources = [{"name": "first", "input": ["y"]}, entry]
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"corpus": {"sources": sources}}), encoding="utf-8")
    given: tuple[tuple[str, Callable[[], object]], ...] = (
        ("", lambda: load_config(None, corpus={"sources": sources})),
        (f"{file}:1: ", lambda: load_config(file)),
        ("", lambda: parse_settings(RunSettings, ["--corpus.sources", json.dumps(sources)], "p", "")),
    )
    for place, load in given:
        with pytest.raises(UserError) as error:
            load()
        assert str(error.value).startswith(f"{place}corpus.sources: {message}")


@pytest.mark.parametrize("value", ["3", "[a]", ""])
def test_a_value_in_place_of_a_group_is_refused_at_its_line(tmp_path: Path, value: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"run: a\ntrain: {value}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"c\.yaml:2: train is a group of settings; write each on a line of its own"):
        load_config(file)


def test_the_demos_validation_curve_has_five_points_of_the_same_text() -> None:
    settings, default = parse("--config", "demo"), EvalSettings()
    assert settings.train.max_steps is not None
    assert settings.train.max_steps // settings.eval.every == 5
    # Of less than the split the last point, which is of all of it, would be of another text.
    assert settings.eval.tokens == default.tokens
