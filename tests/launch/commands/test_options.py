"""Errors name settings as the options of the command that was run, so that their remedy can be applied there."""

from pathlib import Path

import pytest

from malmoi.configs.commands import EvaluateOptions, JudgeMakeOptions, PrepareOptions, QualityOptions, TokenizerOptions
from malmoi.configs.parser import setting_names
from malmoi.disk_space import check_space
from malmoi.errors import UserError
from malmoi.launch.cli import main
from malmoi.launch.commands.options import errors_name_options, option_by_setting

TEXT = "영화가 정말 재미있다\n또 보고 싶은 영화다\n배우들의 연기가 좋았다\n"


@pytest.fixture
def cp949(tmp_path: Path) -> Path:
    file = tmp_path / "old.txt"
    file.write_bytes(TEXT.encode("cp949"))
    return file


def test_evaluate_and_quality_read_a_file_in_cp949_as_their_error_says(
    finished_run: Path, cp949: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sacrebleu", reason="the extra `eval` is not installed")
    for command, text in (("evaluate", "--data"), ("quality", "--texts")):
        words = [command, "--model", str(finished_run / "model"), text, str(cp949)]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "old.txt:1: not UTF-8 at byte 0; it looks like CP949: set --encoding cp949 or auto\n" in said
        for encoding in ("cp949", "auto"):
            assert main([*words, "--encoding", encoding]) == 0


def test_judge_names_its_own_options(finished_run: Path, cp949: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", str(finished_run / "model"), "--data", str(cp949), "--out", str(cp949.parent / "test"))
    assert main(["judge", "make", *words]) == 2
    assert "it looks like CP949: set --encoding cp949 or auto\n" in capsys.readouterr().err


def test_a_vocabulary_that_is_too_small_is_named_by_the_tokenizer_commands_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    assert (
        main(["tokenizer", "--input", str(tmp_path / "a.txt"), "--vocab_size", "10", "--out", str(tmp_path / "t")]) == 2
    )
    assert "malmoi tokenizer: --vocab_size 10 is smaller than the alphabet" in capsys.readouterr().err


def test_prepare_on_a_disk_that_is_too_small_names_its_own_option_for_another(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set --out to a folder on a larger disk"), errors_name_options(PrepareOptions):
        check_space(tmp_path, output_bytes=10**15, documents=1, input_fraction=1e-3)


def test_a_setting_that_a_command_lacks_keeps_the_name_that_it_has_in_a_run() -> None:
    kept = pytest.raises(UserError, match=r"a larger data\.val_fraction, --encoding and tokenizer\.json")
    with kept, errors_name_options(EvaluateOptions):
        raise UserError("a larger data.val_fraction, corpus.encoding and tokenizer.json")


@pytest.mark.parametrize("kind", [TokenizerOptions, PrepareOptions, EvaluateOptions, QualityOptions, JudgeMakeOptions])
def test_every_option_that_an_error_can_name_exists(kind: type) -> None:
    options = option_by_setting(kind)
    assert options["corpus.encoding"] == "--encoding" and options["corpus.on_error"] == "--on_error"
    assert {option.removeprefix("--") for option in options.values()} <= set(setting_names(kind))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "c.yaml:2: model.n_head 5 does not divide model.n_embd 768; change one"),
        (("--model.n_head", "7"), "malmoi train: model.n_head 7 does not divide model.n_embd 768; change one"),
        (("--model.n_head=12",), "c.yaml:4: optim.name adm: "),
    ],
)
def test_a_setting_that_a_run_refuses_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model:\n  n_head: 5\noptim:\n  name: adm\n", encoding="utf-8")
    assert main(["train", "--config", str(file), "--run", str(tmp_path / "run"), *words]) == 2
    assert said in capsys.readouterr().err
