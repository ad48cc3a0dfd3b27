"""An error names a setting as the command that was run calls it, and what it says to do can be done there."""

from pathlib import Path

import pytest

from configs.command_line import setting_names
from configs.commands import EvaluateOptions, JudgeMakeOptions, PrepareOptions, QualityOptions, TokenizerOptions
from configs.errors import BadInput
from data_prep.space import check_space
from launch.cli import main
from launch.option_names import bare_names, options_of

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


def test_a_vocabulary_that_is_too_small_is_named_as_the_tokenizer_command_calls_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    assert (
        main(["tokenizer", "--input", str(tmp_path / "a.txt"), "--vocab_size", "10", "--out", str(tmp_path / "t")]) == 2
    )
    assert "malmoi tokenizer: --vocab_size 10 is smaller than the alphabet" in capsys.readouterr().err


def test_prepare_on_a_disk_that_is_too_small_says_where_else_it_can_write(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="set --out to a folder on a larger disk"), bare_names(PrepareOptions):
        check_space(tmp_path, output_bytes=10**15, documents=1, input_share=1e-3)


def test_a_setting_that_a_command_lacks_keeps_the_name_that_it_has_in_a_run() -> None:
    kept = pytest.raises(BadInput, match=r"a larger data\.held_out, --encoding and tokenizer\.json")
    with kept, bare_names(EvaluateOptions):
        raise BadInput("a larger data.held_out, corpus.encoding and tokenizer.json")


@pytest.mark.parametrize("kind", [TokenizerOptions, PrepareOptions, EvaluateOptions, QualityOptions, JudgeMakeOptions])
def test_every_option_that_is_named_is_one_of_the_commands(kind: type) -> None:
    options = options_of(kind)
    assert options["corpus.encoding"] == "--encoding" and options["corpus.on_error"] == "--on_error"
    assert {option.removeprefix("--") for option in options.values()} <= set(setting_names(kind))
