"""docs/data.md, continue.md, finetune.md and judge.md, followed on a small model: what is written on them works."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from malmoi.configs.run import RunSettings
from malmoi.evaluation.human_eval.items import read_test
from malmoi.evaluation.human_eval.ratings import Rating, Ratings
from malmoi.launch.cli import main
from tests.launching import with_settings
from tests.pages import Page
from tests.train.labeled import rows_of, written

SHAPE = ("--model.n_layer=2", "--model.n_head=2", "--model.n_embd=32", "--model.block_size=256")
SHORT = (
    *("--train.max_steps=2", "--train.global_batch_size=4", "--train.micro_batch_size=4", "--train.precision=fp32"),
    *("--schedule.warmup_steps=0", "--generate.max_new_tokens=4", "--data.val_fraction=0.1"),
)


@pytest.fixture(scope="module")
def trained(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose context holds what the pages ask of it."""
    from malmoi.train.pretrain import pretrain

    run = tmp_path_factory.mktemp("trained") / "run"
    settings = with_settings(tiny_settings, run=str(run), model__block_size=256, train__max_steps=2)
    assert pretrain(with_settings(settings, schedule__warmup_steps=0)) == 0
    return run


@pytest.fixture
def in_folder(
    trained: Path,
    tiny_settings: RunSettings,
    finished_shards: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder in which the pages' runs, models, texts and labels are there."""
    for run in ("demo", "2023"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "model").symlink_to(trained / "model")
    (tmp_path / "runs" / "demo" / "shards").symlink_to(finished_shards)
    (tmp_path / "tokenizer").symlink_to(str(tiny_settings.tokenizer.path))
    for model in ("MODEL", "kogpt2"):
        (tmp_path / model).symlink_to(trained / "model")
    for text in ("corpus", "new_text", "news_2026", "corpus_2023"):
        (tmp_path / text).mkdir()
        (tmp_path / text / "text.jsonl").symlink_to(corpus_file)
    for name, part, count in (("train", "", 16), ("dev", "_examples", 8), ("test", "_examples", 8)):
        written(tmp_path / f"{name}.jsonl", rows_of("classification", part, count))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_folder")
def test_the_page_on_data_makes_checks_and_opens_shards(capsys: pytest.CaptureFixture[str]) -> None:
    page = Page("data.md")
    commands = page.commands()
    assert [words[0] for words in commands] == ["prepare", "verify", "inspect"]
    for words in commands:
        assert main(["1" if word == "8" else word for word in words]) == 0, capsys.readouterr().err
    assert "valid shard folder" in capsys.readouterr().out
    [block] = page.blocks("python")
    exec(block, {})


@pytest.mark.usefixtures("in_folder")
def test_the_page_on_continuing_trains_on_new_text_new_tokens_and_a_replay_of_the_old() -> None:
    page = Page("continue.md")
    [words] = page.commands()
    assert main([*words, *SHAPE, *SHORT]) == 0
    [block] = page.blocks("python")
    exec(block, {})
    more = ("--tokenizer.path=kogpt2_more", "--init_resize=true", "--run=runs/more")
    assert main([*words[: words.index("--run")], *SHAPE, *SHORT, *more]) == 0
    [block] = page.blocks("yaml")
    Path("replay.yaml").write_text(block, encoding="utf-8")
    assert main(["train", "--config", "replay.yaml", "--run", "runs/replay", *SHAPE, *SHORT]) == 0
    for run in ("newer", "more", "replay"):
        assert (Path("runs") / run / "model" / "model.safetensors").is_file()
    tokenizer = json.loads(Path("runs/more/model/tokenizer.json").read_text(encoding="utf-8"))
    assert "신조어" in {token["content"] for token in tokenizer["added_tokens"]}


@pytest.mark.usefixtures("in_folder")
def test_the_page_on_fine_tuning_makes_a_classifier_that_answers_as_it_says() -> None:
    pytest.importorskip("sklearn", reason="the extra `finetune` is not installed")
    page = Page("finetune.md")
    words, nsmc = page.commands()
    assert main([*words, "--train.max_steps", "2", "--train.precision", "fp32"]) == 0
    for part in ("train", "test"):
        # As NSMC is distributed: a review that is empty, and one with a quote that quotes nothing.
        rows = [("document", "label"), ("", "0"), ('"최고', "1"), ("별로예요", "0")] + [("볼만해요", "1")] * 200
        lines = [f"{number or 'id'}\t{text}\t{label}" for number, (text, label) in enumerate(rows)]
        Path(f"ratings_{part}.txt").write_text("\n".join(lines), encoding="utf-8")
    assert main([*nsmc, "--train.max_steps", "2", "--train.precision", "fp32"]) == 0
    [block] = page.blocks("python")
    exec(block, {})
    if shutil.which("jq") is not None:
        [jq] = [block for block in page.blocks("sh") if block.startswith("jq ")]
        done = subprocess.run(["bash", "-euc", jq], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("in_folder")
def test_the_page_on_the_blind_test_makes_one_and_computes_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="the extra `judge` is not installed")
    make, serve, results = Page("judge.md").commands()
    assert [make[1], serve[1], results[1]] == ["make", "serve", "results"]
    assert main([*make, "--texts", "2", "--control_texts", "2"]) == 0, capsys.readouterr().err
    # `serve` runs until Ctrl-C: tests/launch/human_eval serves. These are the answers that it would have written.
    folder = Path(serve[2])
    test = read_test(folder)
    ratings = Ratings(folder, test)
    for _ in range(2):
        rater = ratings.new_rater()
        for item in test.items:
            ratings.write(Rating(rater, item.id, 4))
    assert main(results) == 0, capsys.readouterr().err
    assert (folder / "results.html").is_file()
