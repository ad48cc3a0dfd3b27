"""Bad input to the commands that use a model: exit code 2 and one line, for each kind of it."""

import json
from pathlib import Path

import pytest

from malmoi.launch.cli import main
from tests.evaluation.fewshot.fewshot_models import bert


class Refusals:
    """Command lines that must be refused."""

    def __init__(self, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model, self.folder, self._capsys = str(model), folder, capsys

    def file(self, name: str, *rows: object) -> str:
        """A file of JSON lines, or of plain text."""
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(self.folder / name)

    def of(self, command: str, *words: str, model: str | None = None) -> str:
        """What the refusal says."""
        self._capsys.readouterr()
        named = () if model == "" else ("--model", model or self.model)
        assert main([*command.split(), *named, *words]) == 2
        printed = self._capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1, printed.err
        return printed.err


@pytest.fixture
def refused(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusals:
    return Refusals(finished_run / "model", tmp_path, capsys)


def test_a_model_of_another_architecture(refused: Refusals, tmp_path: Path) -> None:
    other = str(bert(tmp_path / "bert"))
    text, rows = refused.file("a.txt", "글이다."), refused.file("a.jsonl", {"text": "글", "label": 1})
    out = str(tmp_path / "out")
    for command, words in {
        "generate": (),
        "evaluate": ("--data", text),
        "quality": (),
        "judge make": ("--data", text, "--out", out, "--texts", "1", "--control_texts", "0"),
    }.items():
        if command == "judge make":
            many = refused.file("many.txt", *(f"첫 문장 {n}이다. {'하나 둘 셋 ' * 90}끝." for n in range(3)))
            words = ("--data", many, *words[2:])
        said = refused.of(command, *words, model=other)
        assert "holds a BertForMaskedLM, which is no causal language model" in said, command
    tuned = ("--init_from", other, "--task.train", rows, "--run", out)
    assert "holds a model of type bert; --init_from takes" in refused.of("finetune", *tuned, model="")


def test_text_that_is_empty(refused: Refusals, tmp_path: Path) -> None:
    empty, out = refused.file("empty.txt"), str(tmp_path / "out")
    assert "empty.txt: holds no text to evaluate on" in refused.of("evaluate", "--data", empty)
    assert "empty.txt: holds no prompt" in refused.of("generate", "--prompts_file", empty)
    assert "empty.txt: 0 documents with an opening" in refused.of("judge make", "--data", empty, "--out", out)
    rows = refused.file("rows.jsonl", {"text": "글", "label": 1}, {"text": " ", "label": 0})
    tuned = ("--init_from", refused.model, "--task.train", rows, "--run", out)
    assert "rows.jsonl:2: the text in 'text' is empty" in refused.of("finetune", *tuned, model="")


def test_rows_without_the_field_that_is_named(refused: Refusals, tmp_path: Path) -> None:
    rows, out = refused.file("rows.jsonl", {"txt": "글이다. 글이다.", "label": 1}), str(tmp_path / "out")
    for command, words in {"evaluate": (), "judge make": ("--out", out)}.items():
        said = refused.of(command, "--data", rows, *words)
        assert "rows.jsonl:1: no field 'text'" in said, command
    tuned = ("--init_from", refused.model, "--task.train", rows, "--run", out)
    assert "rows.jsonl:1: no field 'text' (there are 'txt', 'label'); did you mean 'txt'?" in refused.of(
        "finetune", *tuned, model=""
    )


def test_a_class_that_training_has_not_seen(refused: Refusals, tmp_path: Path) -> None:
    rows = refused.file("a.jsonl", {"text": "글", "label": 1}, {"text": "말", "label": 0})
    for part in ("validation", "test"):
        other = refused.file(f"{part}.jsonl", {"text": "글", "label": 2})
        tuned = ("--init_from", refused.model, "--task.train", rows, f"--task.{part}", other)
        said = refused.of("finetune", *tuned, "--run", str(tmp_path / "out"), model="")
        assert f"{part}.jsonl:1: the class '2' is none of those in" in said


def test_more_than_the_models_context(refused: Refusals, tmp_path: Path) -> None:
    text = refused.file("a.txt", "글이다. " * 30)
    assert "do not fit the model's context of 32" in refused.of("generate", "--max_new_tokens", "100")
    assert "shorten the prompt by" in refused.of("generate", "--prompt", "아주 긴 글이다 " * 40)
    said = refused.of("evaluate", "--data", text, "--stride", "33")
    assert "stride 33: choose 1 to the model's context of 32" in said
    many = refused.file("many.txt", *(f"첫 문장 {n}이다. {'하나 둘 셋 ' * 90}끝." for n in range(9)))
    words = ("--data", many, "--out", str(tmp_path / "out"), "--texts", "1", "--control_texts", "0")
    assert "too few continuations reach the length" in refused.of("judge make", *words)


def test_a_fine_tuned_models_folder_generates_no_text(refused: Refusals, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["GPT2ForSequenceClassification"]}))
    (folder / "model.safetensors").write_bytes(b"")
    said = refused.of("generate", model=str(folder))
    assert "holds a GPT2ForSequenceClassification, which is no causal language model" in said
