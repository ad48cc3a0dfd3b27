"""Run folders: which settings are recorded when, and which of them may change."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.parser import setting_names, settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.build import build_tokenizer
from malmoi.errors import RunFailed, UserError
from malmoi.train.dry_run import dry_run
from malmoi.train.pretrain import pretrain
from malmoi.train.run_dir import FINETUNING_FIXED, FIXED, HYPERPARAMETERS, prepare_run, record_settings, run_lock
from tests.launching import metrics, with_settings
from tests.time_limits import seconds


def test_settings_are_replaced_atomically(tiny_settings: RunSettings, finished_run: Path, tmp_path: Path) -> None:
    """Another rank that has the old file open still reads all of it."""
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"))
    prepare_run(settings)
    with (tmp_path / "run" / "config.yaml").open(encoding="utf-8") as old:
        changed = with_settings(settings, log__every=7)
        record_settings(tmp_path / "run", changed)
        assert old.read() == settings_as_yaml(settings)
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == settings_as_yaml(changed)


@pytest.mark.parametrize("place", [None, "memory://{}/checkpoints"])
def test_a_setting_that_was_refused_may_be_corrected_until_a_checkpoint_holds_it(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, place: str | None
) -> None:
    wanted = with_settings(
        tiny_settings,
        run=str(tmp_path / "run"),
        train__max_steps=2,
        checkpoint__every=1,
        checkpoint__dir=place and place.format(tmp_path.name),
        eval__every=0,
    )
    nonsense = {"tensorboard": {"nonsense": 1}}
    with pytest.raises(UserError, match=r"log.tracker_args: .*nonsense"):
        pretrain(with_settings(wanted, model__n_layer=1, log__tracker_args=nonsense))
    # Lines of a start that ended before its first checkpoint.
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 1, "tokens_seen": 1, "event": "resume", "text": ""}\n', encoding="utf-8"
    )
    assert pretrain(wanted) == 0
    assert [line["step"] for line in metrics(tmp_path / "run") if "train/loss" in line] == [1, 2]
    assert not [line for line in metrics(tmp_path / "run") if "event" in line]
    with pytest.raises(UserError, match=r"holds another run: model.n_layer was"):
        pretrain(with_settings(wanted, model__n_layer=wanted.model.n_layer + 1))


def test_only_settings_that_train_are_recorded(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A start that is refused and a dry run leave those of the run that is there."""
    config = tmp_path / "run" / "config.yaml"
    trained = with_settings(tiny_settings, run=str(tmp_path / "run"), train__max_steps=2)
    assert pretrain(trained) == 0
    assert config.read_text(encoding="utf-8") == settings_as_yaml(trained)
    other = with_settings(trained, train__max_steps=4, optim__lr=5e-3)
    with FileLock(tmp_path / "run" / ".training.lock"), pytest.raises(UserError, match="another process trains here"):
        pretrain(other)
    with pytest.raises(UserError, match="no multiple of"):
        pretrain(with_settings(other, train__global_batch_size=6))
    with pytest.raises(UserError, match="is beyond the 1 steps"):
        pretrain(with_settings(other, train__max_steps=1))
    assert dry_run(other) == 0
    assert config.read_text(encoding="utf-8") == settings_as_yaml(trained)
    assert pretrain(other) == 0
    assert config.read_text(encoding="utf-8") == settings_as_yaml(other)
    event = next(line["text"] for line in metrics(tmp_path / "run") if "event" in line)
    assert event.endswith("; train.max_steps was 2 and is now 4; optim.lr was 0.01 and is now 0.005")


@pytest.mark.parametrize("stale", [{"RANK": "1"}, {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "n1"}])
def test_variables_of_an_earlier_launch_let_no_second_training_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: dict[str, str]
) -> None:
    for name, value in stale.items():
        monkeypatch.setenv(name, value)
    with (
        FileLock(tmp_path / ".training.lock"),
        pytest.raises(UserError, match="another process trains here"),
        run_lock(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__n_head": 3}, "model.n_head 3 does not divide model.n_embd 32"),
        (
            {"generate__max_new_tokens": 32},
            "generate.max_new_tokens 32: with a prompt they do not fit .*block_size 32",
        ),
        ({"train__attention": "flash_attention_2", "train__precision": "bf16"}, "needs the package flash-attn"),
        ({"log__trackers": ("tensorbord",)}, "log.trackers tensorbord: no such tracker; did you mean 'tensorboard'"),
        ({"corpus": CorpusSettings(input=("no such file",))}, "no such file"),
        ({"corpus": CorpusSettings()}, "corpus.input"),
    ],
)
def test_a_start_that_is_refused_leaves_no_folder(
    tiny_settings: RunSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """And says so before tokenizer and shards are built."""
    refused = with_settings(
        tiny_settings, run=str(tmp_path / "runs" / "run"), data__cache=str(tmp_path / "cache"), **change
    )
    with pytest.raises(UserError, match=message):
        pretrain(refused)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_whose_folder_was_renamed_is_named(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    newest = run / "checkpoints" / "step-000020"
    newest.rename(newest.with_name("step-000030"))
    message = r"step-000030: holds step 20, so the folder was renamed or copied; name it step-000020 again"
    with pytest.raises(UserError, match=message):
        pretrain(with_settings(tiny_settings, run=str(run), train__max_steps=22))


def test_a_folder_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".training.lock").mkdir()
    with pytest.raises(UserError, match=r"\.training\.lock: cannot be locked \(Is a directory\)"), run_lock(tmp_path):
        pass


def test_a_run_folder_that_is_deleted_while_it_trains_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(RunFailed, match="run: was deleted while it trained"), run_lock(folder):
        shutil.rmtree(folder)
        (folder / "metrics.jsonl").write_text("", encoding="utf-8")


def test_hyperparameters_and_fixed_settings_are_settings() -> None:
    names = {*setting_names(RunSettings), *setting_names(FinetuneSettings)}
    assert names >= HYPERPARAMETERS
    for fixed in (FIXED, FINETUNING_FIXED):
        assert all(any(name.startswith(beginning) for name in names) for beginning in fixed)


def test_a_finished_run_refuses_a_changed_hyperparameter(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    done = with_settings(tiny_settings, run=str(tmp_path / "run"), train__max_steps=2)
    assert pretrain(done) == 0
    with pytest.raises(UserError, match=r"all 2 steps are done, so this would train nothing: optim\.betas was \[0.9"):
        pretrain(with_settings(done, optim__betas=(0.8, 0.95)))
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == settings_as_yaml(done)
    asked = with_settings(done, generate__prompt="세종은")
    assert pretrain(asked) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["prompt"] == "세종은"


def test_a_run_whose_shards_are_built_loads_nothing_to_encode_with(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    """What it would load takes longer than all else before the first step but the imports."""
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"))
    prepare_run(settings)
    (tmp_path / "settings.yaml").write_text(settings_as_yaml(settings), encoding="utf-8")
    program = (
        "import sys; from malmoi.configs.parser import parse_settings; from malmoi.configs.run import RunSettings\n"
        "from malmoi.train.run_dir import prepare_run\n"
        f"prepare_run(parse_settings(RunSettings, ['--config', {str(tmp_path / 'settings.yaml')!r}], 'test', ''))\n"
        "print({'numba', 'torch', 'transformers'} & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds(120), check=False
    )
    assert (ended.stdout, ended.stderr) == ("set()\n", "")


@pytest.fixture
def own_tokenizer(tiny_settings: RunSettings, corpus_file: Path, tmp_path: Path) -> RunSettings:
    """Settings of a run that trains its tokenizer, on a file that a test may change."""
    file = tmp_path / "corpus.jsonl"
    shutil.copy(corpus_file, file)
    return with_settings(
        tiny_settings,
        run=str(tmp_path / "run"),
        corpus__input=(str(file),),
        data__cache=None,
        tokenizer__path=None,
        train__max_steps=1,
        eval__every=0,
    )


def trained_tokenizer(settings: RunSettings, folder: Path) -> bytes:
    return (build_tokenizer(settings.corpus, settings.tokenizer, folder, False) / "tokenizer.json").read_bytes()


def tokenizer_of(settings: RunSettings) -> bytes:
    return (Path(settings.run) / "tokenizer" / "tokenizer.json").read_bytes()


def test_a_tokenizer_of_a_corpus_that_was_too_short_is_replaced(own_tokenizer: RunSettings, tmp_path: Path) -> None:
    file = Path(own_tokenizer.corpus.input[0])
    corpus = file.read_bytes()
    file.write_text(json.dumps({"text": "가나"}, ensure_ascii=False) + "\n", encoding="utf-8")
    with pytest.raises(UserError):
        pretrain(own_tokenizer)
    short = tokenizer_of(own_tokenizer)
    file.write_bytes(corpus)
    assert pretrain(own_tokenizer) == 0
    assert tokenizer_of(own_tokenizer) == trained_tokenizer(own_tokenizer, tmp_path / "expected") != short
    assert not list(Path(own_tokenizer.run).glob(".tokenizer*"))


def test_a_tokenizer_of_other_settings_is_replaced_until_a_checkpoint_depends_on_it(
    own_tokenizer: RunSettings, tmp_path: Path
) -> None:
    wanted = with_settings(own_tokenizer, tokenizer__vocab_size=2100)
    prepare_run(own_tokenizer)
    before = tokenizer_of(own_tokenizer)
    with FileLock(Path(wanted.run) / ".training.lock"), pytest.raises(UserError, match="another process trains here"):
        prepare_run(wanted)
    assert tokenizer_of(wanted) == before
    assert pretrain(wanted) == 0
    kept = tokenizer_of(wanted)
    assert kept == trained_tokenizer(wanted, tmp_path / "expected") != before
    with pytest.raises(UserError, match=r"holds another run: tokenizer\.vocab_size was 2100 and is now 2000"):
        pretrain(own_tokenizer)
    with Path(wanted.corpus.input[0]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "바뀐 글. " * 100}, ensure_ascii=False) + "\n")
    longer = with_settings(wanted, train__max_steps=2)
    with pytest.raises(UserError, match=r"trained on shards .*; restore them, choose another --run, or resume anyway"):
        pretrain(longer)
    assert pretrain(with_settings(longer, checkpoint__allow_data_change=True)) == 0
    assert tokenizer_of(wanted) == kept
    shutil.rmtree(Path(wanted.run) / "tokenizer")
    with pytest.raises(UserError, match="tokenizer: gone or damaged, and one trained on changed data would not fit"):
        pretrain(with_settings(longer, train__max_steps=3, checkpoint__allow_data_change=True))


def test_a_tokenizer_that_records_no_corpus_is_kept_by_a_run_that_depends_on_it(own_tokenizer: RunSettings) -> None:
    """It is of an older version, or was put there."""
    prepare_run(own_tokenizer)
    folder = Path(own_tokenizer.run) / "tokenizer"
    [marker] = folder.glob("made-of-*")
    marker.unlink()
    with pytest.raises(UserError, match=f"does not record what text .*--tokenizer.path {folder}$"):
        prepare_run(own_tokenizer)
    marker.touch()
    assert pretrain(own_tokenizer) == 0
    marker.unlink()
    assert pretrain(with_settings(own_tokenizer, train__max_steps=2)) == 0
    assert len(metrics(Path(own_tokenizer.run))) > 2


@pytest.mark.parametrize("has_checkpoint", [False, True], ids=["before the first checkpoint", "resumed"])
def test_a_damaged_tokenizer_is_built_anew_whichever_of_its_files_it_is(
    has_checkpoint: bool, own_tokenizer: RunSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if has_checkpoint:
        assert pretrain(own_tokenizer) == 0
    else:
        prepare_run(own_tokenizer)
    folder = Path(own_tokenizer.run) / "tokenizer"
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len(whole) >= 3
    for name, content in whole.items():
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 4
        (folder / name).write_bytes(damaged)
        caplog.clear()
        prepare_run(own_tokenizer)
        assert str(folder / name) in caplog.text and "building it again" in caplog.text
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


@pytest.mark.parametrize("name", ["model", "checkpoints", "tokenizer", "shards"])
def test_a_file_in_the_place_of_a_runs_folder_is_refused_before_anything_is_built(
    name: str, tiny_settings: RunSettings, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=f"run/{name}: is a file, where the run has a folder; move it"):
        prepare_run(with_settings(tiny_settings, run=str(tmp_path / "run")))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl"])
def test_a_folder_where_the_run_has_a_file_is_refused(tiny_settings: RunSettings, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"run/{name}: is a folder, where the run has a file; move it"):
        prepare_run(with_settings(tiny_settings, run=str(tmp_path / "run")))


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_log_that_is_a_link_to_nothing_is_refused(tiny_settings: RunSettings, tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to("logs/moved")
    with pytest.raises(UserError, match=f"run/{name}: is a link to logs/moved, which is missing; restore that"):
        prepare_run(with_settings(tiny_settings, run=str(tmp_path / "run")))
