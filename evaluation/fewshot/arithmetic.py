"""Generate the ten arithmetic tasks of GPT-3 (Brown et al. 2020, section 3.9.1), in Korean, from a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass

DOCUMENTS = 500
EXAMPLES = 200
SEED = 42
WORDS = {"+": "더하기", "-": "빼기", "*": "곱하기"}


@dataclass(frozen=True)
class Arithmetic:
    """Which problems, and how many."""

    operation: str
    """A key of `OPERATIONS`."""
    documents: int = DOCUMENTS
    examples: int = EXAMPLES
    seed: int = SEED


@dataclass(frozen=True)
class Problems:
    """Rows of `question` and `answer`; no question occurs twice, so no example reveals an answer."""

    documents: tuple[dict[str, str], ...]
    examples: tuple[dict[str, str], ...]


def problems(settings: Arithmetic) -> Problems:
    """Return the problems of some settings, the same on any machine."""
    draw = random.Random(f"{settings.operation} {settings.seed}")
    make = OPERATIONS[settings.operation]
    rows: dict[str, str] = {}
    while len(rows) < settings.documents + settings.examples:
        question, answer = make(draw)
        rows[question] = str(answer)
    ordered = tuple({"question": question, "answer": answer} for question, answer in rows.items())
    return Problems(ordered[: settings.documents], ordered[settings.documents :])


def _two_numbers(digits: int, sign: str) -> Callable[[random.Random], tuple[str, int]]:
    """Return a generator of two numbers, both uniform in [0, 10**digits) as in GPT-3; a difference may be negative."""

    def make(draw: random.Random) -> tuple[str, int]:
        first, second = draw.randrange(10**digits), draw.randrange(10**digits)
        value = {"+": first + second, "-": first - second, "*": first * second}[sign]
        return f"{first} {WORDS[sign]} {second}", value

    return make


def _composite(draw: random.Random) -> tuple[str, int]:
    """Return a problem of three one-digit numbers, the last two in brackets, with two operations of + - *."""
    numbers = [draw.randrange(10) for _ in range(3)]
    outer, inner = draw.choice("+-*"), draw.choice("+-*")
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    value = apply[outer](numbers[0], apply[inner](numbers[1], numbers[2]))
    return f"{numbers[0]} {outer} ({numbers[1]} {inner} {numbers[2]})", value


OPERATIONS: dict[str, Callable[[random.Random], tuple[str, int]]] = {
    **{f"{digits}da": _two_numbers(digits, "+") for digits in range(2, 6)},
    **{f"{digits}ds": _two_numbers(digits, "-") for digits in range(2, 6)},
    "2dm": _two_numbers(2, "*"),
    "1dc": _composite,
}
