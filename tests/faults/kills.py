"""Processes that are killed and signaled at random moments, after which the same command is run again."""

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tests.faults.fault import Fault
from tests.faults.outcome import Ended, Outcome, of_command, same_files
from tests.faults.workplace import Workplace

STOPS = {
    # The exit codes that a stopped `malmoi train` may have: 75 with a checkpoint, 130 and -N before it trains.
    "SIGTERM": ([signal.SIGTERM], (75, -signal.SIGTERM)),
    "SIGUSR1": ([signal.SIGUSR1], (75, -signal.SIGUSR1)),
    "SIGINT": ([signal.SIGINT], (75, 130)),
    "SIGTERM five times": ([signal.SIGTERM] * 5, (75, -signal.SIGTERM)),
    "SIGTERM, then SIGUSR1": ([signal.SIGTERM, signal.SIGUSR1], (75, -signal.SIGTERM)),
    "SIGHUP": ([signal.SIGHUP], (75, -signal.SIGHUP)),
    "SIGKILL": ([signal.SIGKILL], (-signal.SIGKILL,)),
    "SIGQUIT": ([signal.SIGQUIT], (75, -signal.SIGQUIT)),
}
HARMLESS = {
    "SIGSTOP, then SIGCONT": [signal.SIGSTOP, signal.SIGCONT],
    "SIGWINCH": [signal.SIGWINCH],
    "SIGPIPE": [signal.SIGPIPE],
    "SIGCHLD": [signal.SIGCHLD],
}
MOMENTS = {"SIGKILL": 40}
"""Random moments of `malmoi train` from text; of other signals: 5."""


def kill_faults() -> Iterator[Fault]:
    """Yield signals at random moments, of training from text, from a checkpoint, of tokenizer and shards."""
    for name, (numbers, codes) in STOPS.items():
        for moment in range(MOMENTS.get(name, 5)):
            chance = random.Random(f"{name} {moment}")
            stop = partial(_stopped, numbers, codes, chance)
            what, of = ("train, from text", _train) if moment % 2 == 0 else ("train, from a checkpoint", _resume)
            yield Fault(f"{name} of {what}", f"moment {moment}", partial(of, stop))
    for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"):
        numbers, codes = STOPS[name]
        for moment in range(10 if name == "SIGKILL" else 3):
            stop = partial(_stopped, numbers, (*codes, -numbers[0]), random.Random(f"{name} {moment}"))
            yield Fault(f"{name} of prepare", f"moment {moment}", partial(_prepare, stop))
            yield Fault(f"{name} of tokenizer", f"moment {moment}", partial(_tokenizer, stop))
    for name, numbers in HARMLESS.items():
        for moment in range(3):
            yield Fault(
                f"{name} of train", f"moment {moment}", partial(_unharmed, numbers, random.Random(f"{name} {moment}"))
            )


Stopped = Ended | tuple[Outcome, Ended]
"""How a signaled process ended, and where it should not have ended so, what that is."""
Stop = Callable[[Workplace, Sequence[str], float], Stopped]


def _stopped(
    numbers: Sequence[signal.Signals],
    codes: Sequence[int],
    chance: random.Random,
    place: Workplace,
    words: Sequence[str],
    longest: float,
) -> Stopped:
    """Run a command, signal it at a random moment, and return how it ended, or a defect."""
    process = place.fork(words)
    time.sleep(chance.uniform(0.02, longest))
    for number in numbers:
        process.send(number)
        time.sleep(chance.uniform(0, 0.02))
    ended = process.end()
    if ended.code is None:
        return Outcome.HANGS, ended
    if "Traceback (most recent call last)" in ended.stderr:
        return Outcome.TRACEBACK, ended
    return ended if ended.code in (0, *codes) else (Outcome.CODE, ended)


def _again(
    place: Workplace, words: Sequence[str], first: Stopped, is_right: Callable[[], bool]
) -> tuple[Outcome, Ended]:
    if isinstance(first, tuple):
        return first
    ended = place.fork(words).end()
    outcome = of_command(ended, is_right())
    return (Outcome.RESUMED if outcome is Outcome.RIGHT and first.code != 0 else outcome), ended


def _train(stop: Stop, place: Workplace) -> tuple[Outcome, Ended]:
    words = place.train_words()
    return _again(place, words, stop(place, words, 3.0), place.has_right_weights)


def _resume(stop: Stop, place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    words = place.train_words()
    return _again(place, words, stop(place, words, 1.5), place.has_right_weights)


def _prepare(stop: Stop, place: Workplace) -> tuple[Outcome, Ended]:
    words = place.prepare_words()
    return _again(place, words, stop(place, words, 1.5), lambda: has_right_shards(place))


def _tokenizer(stop: Stop, place: Workplace) -> tuple[Outcome, Ended]:
    out = place.folder / "tokenizer"
    words = ["tokenizer", "--input", str(place.text), "--vocab_size", "2000", "--out", str(out)]
    first = stop(place, words, 0.8)
    if not isinstance(first, tuple) and first.code == 0:
        return of_command(first, _is_reference_tokenizer(place)), first
    return _again(place, words, first, lambda: _is_reference_tokenizer(place))


def _is_reference_tokenizer(place: Workplace) -> bool:
    ours, theirs = (folder / "tokenizer" / "tokenizer.json" for folder in (place.folder, place.reference / "run"))
    return ours.is_file() and ours.read_bytes() == theirs.read_bytes()


def has_right_shards(place: Workplace) -> bool:
    """Return whether `malmoi prepare` left the shards of the reference."""
    [theirs] = (place.reference / "run" / "shards").glob("[!.]*")
    return same_files(place.folder / "shards" / theirs.name, theirs)


def _unharmed(numbers: Sequence[signal.Signals], chance: random.Random, place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    process = place.fork(place.train_words())
    time.sleep(chance.uniform(0.1, 1.0))
    for number in numbers:
        process.send(number)
        time.sleep(chance.uniform(0, 0.5))
    ended = process.end()
    return of_command(ended, place.has_right_weights()), ended
