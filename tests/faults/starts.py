"""Commands that are started in the wrong way: by a wrong launcher, in a wrong environment, twice, or misspelled."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.faults.fault import Fault
from tests.faults.kills import has_right_shards
from tests.faults.outcome import Ended, Outcome, of_command, refusal
from tests.faults.workplace import Workplace
from tests.launching import ACCELERATE

LAUNCHERS: dict[str, Mapping[str, str]] = {
    "RANK=1 alone": {"RANK": "1"},
    "RANK=0 alone": {"RANK": "0"},
    "LOCAL_RANK=1 alone": {"LOCAL_RANK": "1"},
    "WORLD_SIZE=2 alone": {"WORLD_SIZE": "2"},
    "WORLD_SIZE=1 alone": {"WORLD_SIZE": "1"},
    "WORLD_SIZE=x": {"WORLD_SIZE": "x", "RANK": "0", "LOCAL_RANK": "0"},
    "WORLD_SIZE=0": {"WORLD_SIZE": "0", "RANK": "0", "LOCAL_RANK": "0"},
    "WORLD_SIZE=-1": {"WORLD_SIZE": "-1", "RANK": "0", "LOCAL_RANK": "0"},
    "RANK=x": {"WORLD_SIZE": "2", "RANK": "x", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    "RANK beyond WORLD_SIZE": {
        "WORLD_SIZE": "2",
        "RANK": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    },
    "no MASTER_ADDR": {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    "no MASTER_PORT": {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"},
    "MASTER_PORT=x": {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "x",
    },
    "MASTER_ADDR of nobody": {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "nobody.invalid",
        "MASTER_PORT": "29512",
    },
    "three ranks for a batch of eight": {
        "WORLD_SIZE": "3",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29513",
    },
}
"""Environment variables by name. A run either trains as one process or is refused."""
LOCALES: dict[str, Mapping[str, str]] = {
    "LC_ALL=C": {"LC_ALL": "C"},
    "LC_ALL=POSIX": {"LC_ALL": "POSIX"},
    "LC_ALL=C, no UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "an unknown locale": {"LC_ALL": "xx_XX.EUC-KR", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "PYTHONIOENCODING=ascii": {"PYTHONIOENCODING": "ascii"},
    "PYTHONIOENCODING=cp949": {"PYTHONIOENCODING": "cp949"},
    "no HOME": {"HOME": "/dev/null/home"},
    "no TERM": {"TERM": "dumb"},
    "TMPDIR of nobody": {"TMPDIR": "/dev/null/tmp"},
}
WRONG_WORDS: dict[str, Sequence[str]] = {
    "an option that is misspelled": ["--confg", "x.yaml"],
    "a setting that is misspelled": ["--train.max_step", "3"],
    "a setting without its group": ["--lr", "0.1"],
    "no number": ["--train.max_steps", "many"],
    "a negative number": ["--train.max_steps", "-3"],
    "NaN": ["--optim.lr", "nan"],
    "an option without its value": ["--train.max_steps"],
    "a settings file that is missing": ["--config", "nowhere.yaml"],
    "a settings file that is a folder": ["--config", "/tmp"],
    "a word too many": ["surplus"],
    "a model that does not divide": ["--model.n_head", "3"],
    "a batch that does not divide": ["--train.global_batch_size", "7"],
    "an optimizer of nobody": ["--optim.name", "nobody"],
    "a schedule of nobody": ["--schedule.name", "nobody"],
    "a backend of nobody": ["--parallel.backend", "nobody"],
    "a model of nobody": ["--model.architecture", "nobody"],
    "a tracker of nobody": ["--log.trackers", "[nobody]"],
    "a plugin of nobody": ["--plugins", "[nobody]"],
    "text of nobody": ["--corpus.input", "[nowhere.txt]"],
    "a tokenizer of nobody": ["--tokenizer.path", "nowhere"],
    "a model to start from of nobody": ["--init_from", "nowhere"],
    "a vocabulary that is too small": ["--tokenizer.vocab_size", "10"],
    "samples beyond the context": ["--generate.max_new_tokens", "100000"],
    "a prompt of one lone surrogate": ["--generate.prompt", os.fsdecode(b"\xff")],
    "flash-attn where there is none": ["--train.attention", "flash_attention_2"],
    "a sequence that is longer than the text": ["--model.block_size", "1000000"],
    "ZeRO without a launcher": ["--parallel.backend", "zero9"],
    "a run folder that is a file": ["--run", "/dev/null"],
    "a run folder below a file": ["--run", "/dev/null/run"],
    "checkpoints on a storage of nobody": ["--checkpoint.dir", "nobody://bucket/run"],
    "a validation split of everything": ["--data.val_fraction", "1.0"],
}
COMMANDS_WITHOUT_INPUT: Sequence[Sequence[str]] = (
    *(["verify", "nowhere"], ["inspect", "nowhere"], ["generate", "--model", "nowhere"], ["report", "nowhere"]),
    *(["evaluate", "--model", "nowhere"], ["quality", "--samples", "nowhere"], ["slurm", "status", "nowhere"]),
    *(["fewshot", "--model", "nowhere"], ["finetune", "--init_from", "nowhere"], ["judge", "score", "nowhere"]),
    *(["prepare"], ["tokenizer"], ["train"], ["verify"], ["inspect"], ["nothing"], ["slurm"], ["trian"]),
    *(["verify", "/dev/null"], ["inspect", "/dev"], ["report", "/dev"], ["prepare", "--input", "/nowhere"]),
)


def start_faults() -> Iterator[Fault]:
    """Yield wrong launchers, environments, streams, words and folders."""
    for name, variables in LAUNCHERS.items():
        yield Fault("a wrong launcher", name, partial(_resume_in, variables))
    yield Fault(
        "a wrong launcher", "accelerate launch without a configuration, two processes", _accelerate_without_file
    )
    yield Fault("a wrong launcher", "the port is taken", _port_is_taken)
    yield Fault("a wrong launcher", "the second rank never comes", _rank_that_never_comes)
    yield Fault("a wrong launcher", "a stale RANK=1 beside a run that trains", _stale_rank_beside_a_run)
    for name, variables in LOCALES.items():
        yield Fault("a locale or environment", f"{name}, train", partial(_resume_in, variables))
        yield Fault("a locale or environment", f"{name}, generate", partial(_generate_in, variables))
    for closed in ((0,), (1,), (2,), (1, 2), (0, 1, 2)):
        shown = " and ".join(("stdin", "stdout", "stderr")[number] for number in closed)
        yield Fault("closed streams", f"{shown} closed, train", partial(_resume_with_closed, closed))
        yield Fault("closed streams", f"{shown} closed, prepare", partial(_prepare_with_closed, closed))
    for number, stream in ((1, "stdout"), (2, "stderr")):
        yield Fault("closed streams", f"{stream} is /dev/full, train", partial(_resume_to, number, "/dev/full"))
        yield Fault("closed streams", f"{stream} is a pipe that nobody reads, train", partial(_resume_to, number, None))
    for name, words in WRONG_WORDS.items():
        yield Fault("wrong words", name, partial(_train_with, words))
    for words in COMMANDS_WITHOUT_INPUT:
        yield Fault("wrong words", " ".join(words), partial(_refused, words))
    yield Fault("started twice", "train, at once", partial(_twice, False))
    yield Fault("started twice", "train, one after the other", partial(_twice, True))
    for name, spoil in SPOILED_FOLDERS.items():
        yield Fault("a folder in the way", name, partial(_resume_in_spoiled, spoil))
    yield Fault("a folder in the way", "the run folder is deleted while it trains", _deleted_under_it)
    yield Fault("a folder in the way", "a shard is cut while it is read", _shard_cut_under_it)


def _resume_in(variables: Mapping[str, str], place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    ended = place.spawn(place.train_words(), variables).end(150)
    return of_command(ended, place.has_right_weights()), ended


def _generate_in(variables: Mapping[str, str], place: Workplace) -> tuple[Outcome, Ended]:
    model = str(place.reference / "run" / "model")
    words = ["generate", "--model", model, "--prompt", "이순신", "--max_new_tokens", "8", "--num_return_sequences", "1"]
    ended = place.spawn(words, variables).end()
    return of_command(ended, bool(ended.stdout.strip())), ended


def _accelerate_without_file(place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    words = [ACCELERATE, "launch", "--num_processes", "2", "--cpu"]
    ended = place.spawn(place.train_words(), launcher=words).end()
    # Two processes, or one that says that it is alone: never one that says nothing.
    is_said = "2 x cpu" in ended.stderr or "num_processes" in ended.stderr
    ours, _, theirs = ended.stderr.partition("Traceback (most recent call last)")
    if "simple_launcher" in theirs:
        # The launcher reports each failure of its process by a traceback of its own, below the process's line.
        ended = Ended(ended.code, ended.stdout, ours)
    return (of_command(ended, is_said) if ended.code == 0 else refusal(ended)), ended


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _two_ranks(port: int, rank: int) -> Mapping[str, str]:
    return {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }


def _port_is_taken(place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = place.spawn(place.train_words(), _two_ranks(taken.getsockname()[1], 0)).end(200)
    return refusal(ended) if ended.code else Outcome.SILENT, ended


def _rank_that_never_comes(place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    ended = place.spawn(place.train_words(), _two_ranks(_free_port(), 0)).end(200)
    return refusal(ended) if ended.code else Outcome.SILENT, ended


def _stale_rank_beside_a_run(place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    first = place.spawn(place.train_words("--train.max_steps", "2000"))
    _wait_for(lambda: "resuming from step" in (place.folder / "stderr.txt").read_text(encoding="utf-8"))
    second_place = Workplace(place.folder / "second", place.reference)
    second_place.folder.mkdir()
    words = ["train", "--config", str(place.config), "--run", str(place.run), "--train.max_steps", "2000"]
    second = second_place.spawn(words, {"RANK": "1"}).end()
    first.send(signal.SIGTERM)
    ended = first.end()
    if ended.code != 75:
        return Outcome.CODE, ended
    return refusal(second) if second.code else Outcome.SILENT, second


def _wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)


def _closing(numbers: Sequence[int]) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            with suppress(OSError):
                os.close(number)

    return close


def _resume_with_closed(numbers: Sequence[int], place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    ended = place.spawn(place.train_words(), before=_closing(numbers)).end()
    return of_command(ended, place.has_right_weights()), ended


def _prepare_with_closed(numbers: Sequence[int], place: Workplace) -> tuple[Outcome, Ended]:
    ended = place.spawn(place.prepare_words(), before=_closing(numbers)).end()
    if ended.code != 0 and 1 in numbers:
        # Its output, the folder's name, could not be written: that may be said.
        return refusal(ended) if 2 not in numbers else Outcome.REFUSED, ended
    return of_command(ended, has_right_shards(place)), ended


def _resume_to(number: int, file: str | None, place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()

    def before() -> None:
        if file is not None:
            os.dup2(os.open(file, os.O_WRONLY), number)
        else:
            reads, writes = os.pipe()
            os.dup2(writes, number)
            os.close(reads)

    ended = place.spawn(place.train_words(), before=before).end()
    return of_command(ended, place.has_right_weights()), ended


def _train_with(words: Sequence[str], place: Workplace) -> tuple[Outcome, Ended]:
    ended = place.fork(place.train_words(*words)).end()
    left = [path.name for path in place.run.rglob("*")] if place.run.is_dir() else []
    if ended.code == 0:
        return Outcome.SILENT, ended
    outcome = refusal(ended)
    if outcome is Outcome.REFUSED and place.run.is_dir() and not left:
        return Outcome.CODE, Ended(ended.code, ended.stdout, ended.stderr + "\nan empty run folder is left")
    return outcome, ended


def _refused(words: Sequence[str], place: Workplace) -> tuple[Outcome, Ended]:
    ended = place.fork(words).end()
    if ended.code == 0:
        return Outcome.SILENT, ended
    # `malmoi slurm` alone prints its usage.
    return (Outcome.REFUSED if ended.code == 2 and "usage" in ended.stderr.lower() else refusal(ended)), ended


def _twice(waits: bool, place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    words = place.train_words()
    first = place.fork(words)
    if waits:
        time.sleep(0.5)
    elsewhere = Workplace(place.folder / "second", place.reference)
    elsewhere.folder.mkdir()
    second = elsewhere.fork(words).end()
    ended = first.end()
    codes = {ended.code, second.code}
    for each in (ended, second):
        if each.code != 0 and refusal(each) is not Outcome.REFUSED:
            return refusal(each), each
    return (Outcome.RIGHT if 0 in codes and place.has_right_weights() else Outcome.SILENT), second


def _as_folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def _rename_newest(run: Path) -> None:
    newest = max((run / "checkpoints").glob("step-*"))
    newest.rename(newest.with_name("step-000099"))


def _copied_checkpoint(run: Path) -> None:
    newest = max((run / "checkpoints").glob("step-*"))
    shutil.copytree(newest, newest.with_name("step-000017"))


SPOILED_FOLDERS: dict[str, Callable[[Path], object]] = {
    ".training.lock is a folder": lambda run: _as_folder(run / ".training.lock"),
    "a file is where the model belongs": lambda run: (run / "model").write_text("", encoding="utf-8"),
    "a file is where checkpoints belong": lambda run: (
        shutil.rmtree(run / "checkpoints"),
        (run / "checkpoints").write_text("", encoding="utf-8"),
    ),
    "a file is where the tokenizer belongs": lambda run: (
        shutil.rmtree(run / "tokenizer"),
        (run / "tokenizer").write_text("", encoding="utf-8"),
    ),
    "a file is where shards belong": lambda run: (
        shutil.rmtree(run / "shards"),
        (run / "shards").write_text("", encoding="utf-8"),
    ),
    "a checkpoint is renamed": _rename_newest,
    "a checkpoint is copied": _copied_checkpoint,
    "all checkpoints are gone": lambda run: shutil.rmtree(run / "checkpoints"),
    "the tokenizer is gone": lambda run: shutil.rmtree(run / "tokenizer"),
    "the shards are gone": lambda run: shutil.rmtree(run / "shards"),
    "a killed process's half model": lambda run: (run / ".model.writing").mkdir(),
    "a foreign folder among checkpoints": lambda run: (run / "checkpoints" / "notes").mkdir(),
    "a foreign folder among shards": lambda run: (run / "shards" / "notes").mkdir(),
}


def _resume_in_spoiled(spoil: Callable[[Path], object], place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    spoil(place.run)
    ended = place.fork(place.train_words()).end()
    return of_command(ended, place.has_right_weights()), ended


def _deleted_under_it(place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    process = place.fork(place.train_words("--train.max_steps", "3000"))
    _wait_for(lambda: "resuming from step" in (place.folder / "stderr.txt").read_text(encoding="utf-8"))
    time.sleep(0.3)
    shutil.rmtree(place.run, ignore_errors=True)
    ended = process.end()
    return refusal(ended) if ended.code else Outcome.SILENT, ended


def _shard_cut_under_it(place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    process = place.fork(place.train_words("--train.max_steps", "100000"))
    _wait_for(lambda: "resuming from step" in (place.folder / "stderr.txt").read_text(encoding="utf-8"))
    time.sleep(0.3)
    [shard] = place.run.glob("shards/*/train-*.bin")
    os.truncate(shard, 4096)
    ended = process.end()
    return refusal(ended) if ended.code else Outcome.SILENT, ended
