"""What an answer is worth: each score of a few-shot task as a function of the outcomes of its documents.

Models and baselines are scored by the same functions. Exact match and F1 follow KorQuAD 1.0 (Lim et al. 2019): F1
counts characters and not words, since particles are written onto the noun.
"""

import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from inference.score import perplexity_of

QUOTES = "'\"《》<>〈〉()‘’"
DROPPED = str.maketrans(dict.fromkeys(QUOTES, " ") | {mark: "" for mark in string.punctuation if mark not in QUOTES})


@dataclass(frozen=True)
class Choice:
    """How likely a model finds each choice."""

    choices: tuple[str, ...]
    nats: tuple[float, ...]
    """Log-likelihood of each, summed over its tokens."""
    gold: int
    value: float = 0.0
    """The right answer as a number, for correlations."""

    @property
    def predicted(self) -> int:
        """The likeliest choice; the first of several."""
        return int(np.argmax(self.nats))


@dataclass(frozen=True)
class Answer:
    """A text that was written, and the texts that are right."""

    text: str
    right: tuple[str, ...]


@dataclass(frozen=True)
class Continuation:
    """How likely a model finds the target."""

    nats: float
    """Log-likelihood, summed over the target's tokens."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest."""


@dataclass(frozen=True)
class Scorer:
    """A score: a value a document, and what becomes of the values."""

    value: Callable[[Any], Any]
    aggregate: Callable[[Sequence[Any]], float] | None
    """None: the mean, which has a standard error over documents."""

    def score(self, outcomes: Sequence[Any]) -> float:
        """The score of all documents together."""
        values = [self.value(outcome) for outcome in outcomes]
        return float(np.mean(values)) if self.aggregate is None else self.aggregate(values)


def scorer(name: str, output_type: str, bleu_tokenize: str = "13a") -> Scorer:
    """The scorer of that name; names are checked where task files are read."""
    if output_type == "loglikelihood":
        return {
            "acc": Scorer(lambda outcome: float(outcome.is_greedy), None),
            "perplexity": Scorer(lambda outcome: outcome.nats, _perplexity),
        }[name]
    return {
        "acc": Scorer(lambda outcome: float(outcome.predicted == outcome.gold), None),
        "acc_norm": Scorer(_right_by_length, None),
        "macro_f1": Scorer(lambda outcome: (outcome.predicted, outcome.gold), _macro_f1),
        "pearson": Scorer(_expected_and_right, lambda pairs: _correlation(pairs, ranked=False)),
        "spearman": Scorer(_expected_and_right, lambda pairs: _correlation(pairs, ranked=True)),
        "exact_match": Scorer(lambda answer: best(exact_match, answer), None),
        "f1": Scorer(lambda answer: best(character_f1, answer), None),
        "bleu": Scorer(lambda answer: answer, lambda answers: _corpus(BLEU(tokenize=bleu_tokenize), answers)),
        "chrf": Scorer(lambda answer: answer, lambda answers: _corpus(CHRF(), answers)),
    }[name]


def normalized(text: str) -> str:
    """Lower case, quotes and brackets as spaces, other punctuation gone, single spaces."""
    return " ".join(text.lower().translate(DROPPED).split())


def exact_match(text: str, right: str) -> float:
    """1 where the normalized texts are the same."""
    return float(normalized(text) == normalized(right))


def character_f1(text: str, right: str) -> float:
    """Harmonic mean of precision and recall over the characters of the normalized texts, spaces left out."""
    ours, theirs = (Counter(normalized(each).replace(" ", "")) for each in (text, right))
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total()) if shared else 0.0


def best(measure: Callable[[str, str], float], answer: Answer) -> float:
    """The measure against the right answer that fits best."""
    return max(measure(answer.text, right) for right in answer.right)


def _right_by_length(outcome: Choice) -> float:
    """Accuracy by log-likelihood a character, lm_eval's acc_norm."""
    by_length = [nats / len(choice) for nats, choice in zip(outcome.nats, outcome.choices, strict=True)]
    return float(int(np.argmax(by_length)) == outcome.gold)


def _macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """Mean over the classes, predicted or right, of each one's F1."""
    scores = []
    for label in sorted({label for pair in pairs for label in pair}):
        hits = sum(predicted == label == gold for predicted, gold in pairs)
        named = sum((predicted == label) + (gold == label) for predicted, gold in pairs)
        scores.append(2 * hits / named)
    return float(np.mean(scores))


def _expected_and_right(outcome: Choice) -> tuple[float, float]:
    """The mean of the choices as numbers under the model, and the right number."""
    weights = np.exp(np.array(outcome.nats) - max(outcome.nats))
    values = np.array([float(choice) for choice in outcome.choices])
    return float((weights * values).sum() / weights.sum()), outcome.value


def _correlation(pairs: Sequence[tuple[float, float]], ranked: bool) -> float:
    """Pearson's, or Spearman's over ranks; 0 where one side is constant, since it then tells nothing."""
    from scipy.stats import rankdata

    sides = np.array(pairs, dtype=np.float64).T
    if sides.shape[1] < 2:
        return 0.0
    sides = np.array([rankdata(side) for side in sides]) if ranked else sides
    if (np.ptp(sides, axis=1) == 0).any():
        return 0.0
    return float(np.asarray(np.corrcoef(sides))[0, 1])


def _perplexity(nats: Sequence[float]) -> float:
    """exp of the mean negative log-likelihood of a target, as LAMBADA counts it: a word and not a token."""
    return perplexity_of(-float(np.mean(nats)))


def _corpus(metric: BLEU | CHRF, answers: Sequence[Answer]) -> float:
    """sacrebleu's score over all documents; one with fewer right answers than another repeats its first."""
    most = max(len(answer.right) for answer in answers)
    references = [
        [answer.right[number] if number < len(answer.right) else answer.right[0] for answer in answers]
        for number in range(most)
    ]
    return float(metric.corpus_score([answer.text for answer in answers], references).score)
