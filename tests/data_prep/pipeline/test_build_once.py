"""Many processes ask at once and one builds, with a lock, without one, and when the builder dies or fails."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.pipeline import build_once as once
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.pipeline.build_once import build_once
from malmoi.data_prep.pipeline.fingerprint import MEMORY_FILE
from malmoi.data_prep.pipeline.heartbeat import Heartbeat, Progress
from malmoi.data_prep.readers import chunks
from malmoi.errors import UserError
from tests.data_prep.building import Build, content_of, wait_until

SHARD_TOKENS = 150_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Path:
    """The first 300 kB of the reviews."""
    file = tmp_path_factory.mktemp("small") / "small.jsonl"
    with reviews.open("rb") as stream:
        content = stream.read(300_000)
    file.write_bytes(content[: content.rindex(b"\n") + 1])
    os.utime(file, (1e9, 1e9))
    return file


@pytest.mark.parametrize("lock", ["real", "nothing"])
def test_sixteen_ask_at_once(small: Path, tokenizer_folder: Path, tmp_path: Path, lock: str) -> None:
    out = tmp_path / "out"
    builds = [Build(tokenizer_folder, out, small, lock=lock, workers=1) for _ in range(16)]
    folders = {build.folder() for build in builds}
    assert len(folders) == 1
    (folder,) = folders
    assert names_in(out) == sorted([f".{folder.name}.verified.json", MEMORY_FILE, folder.name])
    alone = Build(tokenizer_folder, tmp_path / "alone", small, workers=1).folder()
    assert content_of(folder) == content_of(alone)


def test_the_builder_dies_while_eight_wait(reviews: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = Build(tokenizer_folder, out, reviews, workers=2, shard_tokens=SHARD_TOKENS)
    wait_until(lambda: bool(list(out.glob(".*.building-*/train-00000.idx"))))
    waiting = [Build(tokenizer_folder, out, reviews, workers=2, shard_tokens=SHARD_TOKENS) for _ in range(8)]
    time.sleep(2.5)
    first.kill()
    folders = {build.folder() for build in waiting}
    assert len(folders) == 1
    alone = Build(tokenizer_folder, tmp_path / "alone", reviews, workers=2, shard_tokens=SHARD_TOKENS).folder()
    assert content_of(folders.pop()) == content_of(alone)


def test_waiting_processes_fail_at_once_with_the_builder_s_error(
    reviews: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out"
    bad.write_bytes(reviews.read_bytes() + b'{"text": 5}\n')
    os.utime(bad, (1e9, 1e9))
    first = Build(tokenizer_folder, out, bad, workers=2)
    wait_until(lambda: bool(list(out.glob(".*.building-*"))))
    first.process.send_signal(signal.SIGSTOP)
    waiting = [Build(tokenizer_folder, out, bad, workers=2) for _ in range(3)]
    wait_until(lambda: len(list(out.glob(".*.waiting-*"))) == 4)
    first.process.send_signal(signal.SIGCONT)
    assert "bad.jsonl:40001: field 'text' holds int" in first.error()
    for build in waiting:
        assert "UserError" in (log := build.error()) and "bad.jsonl:40001" in log
        assert "resuming from what a stopped build left" not in log, "none builds it again"
    # The report of the failure and the marks went with the last process; what was committed is kept.
    assert [name for name in names_in(out) if ".building-" not in name] == [MEMORY_FILE]


def test_a_refused_build_leaves_nothing_beside_its_output(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "글"}\n{"text": 5}\n', encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "bad.jsonl"),))
    with pytest.raises(UserError, match=r"bad\.jsonl:2: field 'text' holds int"):
        prepare_shards(corpus, DataSettings(), tokenizer_folder, tmp_path / "out")
    assert names_in(tmp_path / "out") == [MEMORY_FILE]


def test_what_a_refused_build_committed_is_kept_for_one_that_skips(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2000)
    caplog.set_level("INFO")
    lines = [f'{{"text": "글 {number}"}}\n' for number in range(1000)]
    (tmp_path / "bad.jsonl").write_text("".join([*lines[:900], '{"text": 5}\n', *lines[900:]]), encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "bad.jsonl"),))
    data = DataSettings(workers=1, shard_tokens=1000)
    with pytest.raises(UserError, match=r"bad\.jsonl:901"):
        prepare_shards(corpus, data, tokenizer_folder, tmp_path / "out")
    assert [name.split(".")[-1].split("-")[0] for name in names_in(tmp_path / "out")] == ["building", "json"]
    skipping = replace(corpus, on_error="skip")
    folder = prepare_shards(skipping, data, tokenizer_folder, tmp_path / "out")
    assert "resuming from what a stopped build left" in caplog.text
    assert names_in(tmp_path / "out") == [MEMORY_FILE, folder.name]
    alone = prepare_shards(skipping, data, tokenizer_folder, tmp_path / "alone")
    assert content_of(folder) == content_of(alone)


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


class Clock:
    """`time`, in which nothing passes but what is slept."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Asks:
    """`build_once` as one of several threads or processes calls it."""

    def __init__(self) -> None:
        self.built = 0

    def build(self, folder: Path, _: Heartbeat) -> None:
        self.built += 1
        (folder / "marker").write_text("done", encoding="utf-8")


def test_of_many_that_ask_one_builds(tmp_path: Path) -> None:
    asks = Asks()

    def slow(folder: Path, heartbeat: Heartbeat) -> None:
        time.sleep(0.5)
        asks.build(folder, heartbeat)

    for _ in range(3):
        threads = [
            threading.Thread(target=build_once, args=(tmp_path / f"final{asks.built}", "marker", slow))
            for _ in range(16)
        ]
        before = asks.built
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asks.built == before + 1
    assert names_in(tmp_path) == ["final0", "final1", "final2"]


def test_an_older_build_is_there_until_one_of_many_that_ask_has_built_another(tmp_path: Path) -> None:
    older = tmp_path / "final"
    older.mkdir()
    (older / "older").touch()
    asks = Asks()

    def slow(folder: Path, heartbeat: Heartbeat) -> None:
        time.sleep(0.5)
        assert (older / "older").is_file()
        asks.build(folder, heartbeat)

    ask = {"target": build_once, "args": (older, "marker", slow), "kwargs": {"replaces": True}}
    threads = [threading.Thread(**ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asks.built == 1
    assert names_in(tmp_path) == ["final"]
    assert names_in(older) == ["marker"]
    with pytest.raises(UserError, match="final: in the way, and not a finished folder of ours"):
        build_once(older, "another", asks.build)
    assert names_in(older) == ["marker"]


def test_waiting_processes_log_the_builder_s_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(once, "SHOW_SECONDS", 0.3)
    caplog.set_level("INFO")

    def slow(folder: Path, heartbeat: Heartbeat) -> None:
        heartbeat.report(Progress(30, 40, 5000, 70_000))
        time.sleep(3)
        (folder / "marker").write_text("done", encoding="utf-8")

    builder = threading.Thread(target=build_once, args=(tmp_path / "final", "marker", slow))
    builder.start()
    wait_until(lambda: bool(list(tmp_path.glob(".*.building-*"))))
    build_once(tmp_path / "final", "marker", slow)
    builder.join()
    assert re.search(rf"waiting for process {os.getpid()} on \S+: 75%, 5,000 documents, 70,000 tokens", caplog.text)


def test_a_finished_folder_is_not_built_again(tmp_path: Path) -> None:
    asks = Asks()
    for _ in range(2):
        assert build_once(tmp_path / "final", "marker", asks.build) == tmp_path / "final"
    assert asks.built == 1


def test_marks_of_killed_processes_go_with_the_next_success(tmp_path: Path) -> None:
    (tmp_path / ".final.waiting-killed").touch()
    (tmp_path / ".final.failed.json").write_text(
        '{"nonce": "old", "message": "old", "is_user_error": true}', encoding="utf-8"
    )
    build_once(tmp_path / "final", "marker", Asks().build)
    assert names_in(tmp_path) == ["final"]


def test_a_process_that_may_not_build_does_so_only_if_no_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "ABSENT_SECONDS", 1.0)
    other, mine = Asks(), Asks()

    def slow(folder: Path, heartbeat: Heartbeat) -> None:
        time.sleep(2.5)
        other.build(folder, heartbeat)

    builder = threading.Thread(target=build_once, args=(tmp_path / "final", "marker", slow))
    builder.start()
    build_once(tmp_path / "final", "marker", mine.build, may_build=False)
    builder.join()
    assert (other.built, mine.built) == (1, 0)
    clock = Clock()
    monkeypatch.setattr(once, "time", clock)
    build_once(tmp_path / "second", "marker", mine.build, may_build=False)
    assert mine.built == 1 and clock.now > 1


def test_a_builder_that_dies_before_the_rename_has_done_all_the_work(tmp_path: Path) -> None:
    (tmp_path / ".final.building-dead").mkdir()
    (tmp_path / ".final.building-dead" / "marker").write_text("all of it", encoding="utf-8")
    asks = Asks()
    build_once(tmp_path / "final", "marker", asks.build)
    assert asks.built == 0 and (tmp_path / "final" / "marker").read_text(encoding="utf-8") == "all of it"


def test_the_rename_decides(tmp_path: Path) -> None:
    def build(folder: Path, _: Heartbeat) -> None:
        (folder / "marker").write_text("late", encoding="utf-8")
        (tmp_path / "final").mkdir()
        (tmp_path / "final" / "marker").write_text("first", encoding="utf-8")

    assert build_once(tmp_path / "final", "marker", build) == tmp_path / "final"
    assert (tmp_path / "final" / "marker").read_text(encoding="utf-8") == "first"
    assert not list(tmp_path.glob(".*.building-*"))


def test_a_builder_taken_for_dead_by_mistake_yields_to_the_one_that_resumed(tmp_path: Path) -> None:
    def build(folder: Path, _: Heartbeat) -> None:
        # Another process, believing this one dead, takes the folder over and finishes it.
        folder.rename(tmp_path / "final")
        (tmp_path / "final" / "marker").write_text("other", encoding="utf-8")
        raise FileNotFoundError(folder)

    assert build_once(tmp_path / "final", "marker", build) == tmp_path / "final"
    assert (tmp_path / "final" / "marker").read_text(encoding="utf-8") == "other"


FULL = """
set -e
mount -t tmpfs -o size=1200k tmpfs {disk}
if {python} {script} '{wanted}' 2> {log}; then echo built on a full disk; exit 1; fi
cat {log}
ls -a {disk}/out/.*.building-*/ | grep -c idx
mount -o remount,size=64m {disk}
{python} {script} '{wanted}'
cp -r {disk}/out/*/ {copy}
"""


def test_a_full_disk_is_named_and_the_build_resumes_after_space_is_made(
    reviews: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("needs `unshare -rm`, to mount a small disk of its own")
    alone = Build(tokenizer_folder, tmp_path / "alone", reviews, workers=1, shard_tokens=SHARD_TOKENS)
    expected = content_of(alone.folder())
    (tmp_path / "disk").mkdir()
    wanted = alone.process.args[2].replace(f"{tmp_path}/alone", f"{tmp_path}/disk/out")  # type: ignore[index,union-attr]
    wanted = wanted.replace('"lock"', '"blind": true, "lock"')
    script = tmp_path / "full_disk.py"
    blind = (
        "    from malmoi.data_prep.pipeline import encode_corpus; encode_corpus.check_space = lambda *a: None\n"
        "    wanted ="
    )
    script.write_text((tmp_path / "one_build.py").read_text(encoding="utf-8").replace("    wanted =", blind))
    commands = FULL.format(
        disk=tmp_path / "disk",
        python=sys.executable,
        script=script,
        wanted=wanted,
        log=tmp_path / "log",
        copy=tmp_path / "copy",
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", commands], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the disk is full" in done.stdout and "finished shards are kept" in done.stdout
    assert "resuming from what a stopped build left" in done.stderr
    assert content_of(tmp_path / "copy") == expected


def test_a_build_that_will_not_fit_does_not_start(
    reviews: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from malmoi import disk_space as space

    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(UserError, match=r"the shards need about \d+\.\d MB more, and 100\.0 kB are free; make room"):
        prepare_shards(CorpusSettings(input=(str(reviews),)), DataSettings(workers=1), tokenizer_folder, tmp_path)
