"""`malmoi tokenizer` and `prepare` take on the command line what a run takes from its settings."""

import json
from pathlib import Path

import pytest

from malmoi.configs.commands import PrepareOptions, TokenizerOptions
from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.shards.manifest import read_manifest
from tests.launching import run_malmoi


@pytest.fixture(scope="module")
def tokenizer(tiny_settings: RunSettings) -> str:
    assert tiny_settings.tokenizer.path is not None
    return tiny_settings.tokenizer.path


def prepared(*words: str) -> list[Path]:
    """The folders that `malmoi prepare` prints."""
    done = run_malmoi("prepare", *words)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def refused(*words: str) -> str:
    done = run_malmoi(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


def test_prepare_on_a_dask_cluster(corpus_file: Path, tokenizer: str, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    words = ("--input", str(corpus_file), "--tokenizer", tokenizer)
    (alone,) = prepared(*words, "--out", str(tmp_path / "alone"), "--workers", "1")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path / "dask")
    ) as cluster:
        address = cluster.scheduler_address
        (there,) = prepared(*words, "--out", str(tmp_path / "there"), "--executor", "dask", "--scheduler", address)
    assert there.name == alone.name
    for file in alone.iterdir():
        assert (there / file.name).read_bytes() == file.read_bytes()


def test_an_executor_that_cannot_be_used_is_refused(corpus_file: Path, tokenizer: str, tmp_path: Path) -> None:
    words = ("prepare", "--input", str(corpus_file), "--tokenizer", tokenizer, "--out", str(tmp_path))
    assert "needs the scheduler's address: set --scheduler" in refused(*words, "--executor", "dask")
    said = refused(*words, "--executor", "spark")
    assert "--executor spark: " in said and "Known: local, dask, slurm" in said
    assert "workers 0: give a whole number of 1 or more" in refused(*words, "--workers", "0")
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    assert "set cores and memory in ~/.config/dask/jobqueue.yaml" in refused(*words, "--executor", "slurm")


def test_prepare_reads_skips_and_cleans_as_its_options_say(tokenizer: str, tmp_path: Path) -> None:
    lines = [{"body": {"text": f"한글 문장 {number}"}} for number in range(8)]
    lines += [{"body": {"text": "문의 hong@example.com 주세요"}}, {"body": {"text": "한글 문장 0"}}, {"other": 1}]
    file = tmp_path / "a.jsonl"
    file.write_bytes("\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode("cp949"))
    words = ("--input", str(file), "--tokenizer", tokenizer, "--out", str(tmp_path / "out"))
    reading = ("--encoding", "cp949", "--text_field", "body.text")
    assert "a.jsonl:11: no field 'body.text'" in refused("prepare", *words, *reading)
    skipping = ("--on_error", "skip", "--max_error_rate", "0.1")
    cleaning = ("--cleaning.remove_emails", "--cleaning.exact_dedup", "--cleaning.max_chars=14")
    (folder,) = prepared(*words, *reading, *skipping, *cleaning, "--val_fraction", "0", "--shard_tokens", "20")
    manifest = read_manifest(folder)
    assert manifest.skipped == {"field": 1}
    assert manifest.cleaned == {"email": 1, "exact_duplicate": 1}
    assert manifest.sources[0].encoding == "cp949"
    assert manifest.train.counts.documents == 9


def test_prepare_logs_what_it_detects(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "똠방각하": 3}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    words.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "a.txt").write_bytes("똠방각하\n".encode("cp949"))
    (tmp_path / "half.json").write_text('[{"text": "글"}, {"text": }, {"text": "글"}]', encoding="utf-8")
    files = ("--input", str(tmp_path / "a.txt"), str(tmp_path / "half.json"), "--on_error", "skip")
    where = ("--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "out"), "--workers", "2")
    done = run_malmoi("prepare", *files, *where, "--encoding", "auto", "--max_error_rate", "0.9")
    assert done.returncode == 0, done.stderr
    assert f"malmoi prepare: {tmp_path}/a.txt: read as CP949\n" in done.stderr
    assert "malmoi prepare: encoded by `tokenizers`; the fast path is for tokenizers that Malmoi" in done.stderr
    assert f"malmoi prepare: {tmp_path}/half.json:2: broken JSON" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_prepare_by_options_and_by_settings_build_the_same_folder(
    corpus_file: Path, tokenizer: str, tmp_path: Path
) -> None:
    (folder,) = prepared("--input", str(corpus_file), "--tokenizer", tokenizer, "--out", str(tmp_path / "one"))
    corpus = CorpusSettings(input=(str(corpus_file),))
    assert prepare_shards(corpus, DataSettings(), Path(tokenizer), tmp_path / "two").name == folder.name


def test_prepare_prints_a_folder_for_each_source(tokenizer: str, tmp_path: Path) -> None:
    sources = []
    for name in ("law", "film"):
        (tmp_path / f"{name}.txt").write_text(f"{name} 글\n", encoding="utf-8")
        sources.append({"name": name, "input": [str(tmp_path / f"{name}.txt")]})
    words = ("--sources", json.dumps(sources), "--tokenizer", tokenizer, "--out", str(tmp_path / "out"))
    assert len({read_manifest(folder).sources[0].blake2b for folder in prepared(*words)}) == 2


def test_the_tokenizer_reads_as_its_options_say(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("똠방각하 펲시콜라 " * 20 + "a@b.kr\n").encode("cp949"))
    words = ("tokenizer", "--input", str(tmp_path / "a.txt"), "--vocab_size", "400", "--out", str(tmp_path / "t"))
    assert "it looks like CP949: set --encoding cp949 or auto" in refused(*words)
    made = run_malmoi(*words, "--encoding", "auto", "--cleaning.remove_emails", "--min_character_count", "1")
    assert made.returncode == 0, made.stderr
    vocabulary = json.loads((tmp_path / "t" / "vocab.json").read_text(encoding="utf-8"))
    assert "똠" in vocabulary and "@" not in vocabulary


def test_verify_finds_shards_of_another_tokenizer(corpus_file: Path, tokenizer: str, tmp_path: Path) -> None:
    other, out = tmp_path / "tokenizer", tmp_path / "shards"
    assert (
        run_malmoi("tokenizer", "--input", str(corpus_file), "--vocab_size", "1900", "--out", str(other)).returncode
        == 0
    )
    prepared("--input", str(corpus_file), "--tokenizer", tokenizer, "--out", str(out))
    assert "valid shard folder" in run_malmoi("verify", str(out), "--tokenizer", tokenizer).stdout
    for words in (("verify", str(out), "--tokenizer", str(other)), ("verify", str(out)), ("inspect", str(out))):
        assert f"made with another tokenizer than {other}" in refused(*words)
    shown = run_malmoi("inspect", str(out), "--tokenizer", tokenizer, "--document", "0", "--split", "val")
    assert shown.stdout.startswith("<s>"), shown.stderr


def test_the_settings_name_of_an_option_leads_to_it() -> None:
    assert "did you mean '--encoding'?" in refused("prepare", "--corpus.encoding", "cp949")
    assert "did you mean '--scheduler'?" in refused("prepare", "--data.scheduler", "x")
    assert "did you mean '--data.workers'?" in refused("prepare", "--config", "demo", "--workers", "2")


@pytest.mark.parametrize(("command", "kind"), [("prepare", PrepareOptions), ("tokenizer", TokenizerOptions)])
def test_help_documents_every_option(command: str, kind: type) -> None:
    from malmoi.configs.parser import setting_names

    shown = run_malmoi(command, "--help").stdout
    for name in setting_names(kind):
        assert f"--{name}" in shown
    assert ".parquet or .arrow" in " ".join(shown.split())
