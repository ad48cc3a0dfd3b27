"""Metrics of few-shot tasks: each a function of the outcomes of a task's documents, for models and baselines alike.

Exact match and F1 follow KorQuAD 1.0 (Lim et al. 2019): F1 counts characters and not words, since Korean particles are
written onto the noun.
"""

import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from malmoi.evaluation.label_metrics import macro_f1, pearson, spearman
from malmoi.evaluation.perplexity import perplexity_from_loss

QUOTES = "'\"《》<>〈〉()‘’"
DROPPED = str.maketrans(dict.fromkeys(QUOTES, " ") | {mark: "" for mark in string.punctuation if mark not in QUOTES})


@dataclass(frozen=True)
class Choice:
    """The likelihoods of a document's choices."""

    choices: tuple[str, ...]
    logprobs: tuple[float, ...]
    """Log-likelihood of each in nats, summed over its tokens."""
    gold: int
    value: float = 0.0
    """The right answer as a number, for correlations."""

    @property
    def predicted(self) -> int:
        """The most likely choice; of equal ones the first."""
        return int(np.argmax(self.logprobs))


@dataclass(frozen=True)
class Answer:
    """A generated text, and the texts that are right."""

    text: str
    right: tuple[str, ...]


@dataclass(frozen=True)
class Continuation:
    """The likelihood of the target."""

    logprob: float
    """Log-likelihood in nats, summed over the target's tokens."""
    is_greedy: bool
    """Whether each of its tokens is the most likely one."""


@dataclass(frozen=True)
class Metric:
    """A value for each document, and how the values are aggregated."""

    value: Callable[[Any], Any]
    aggregate: Callable[[Sequence[Any]], float] | None
    """None: the mean, which has a standard error over documents."""

    def score(self, outcomes: Sequence[Any]) -> float:
        """Return the metric over all documents."""
        values = [self.value(outcome) for outcome in outcomes]
        return float(np.mean(values)) if self.aggregate is None else self.aggregate(values)


def metric_by_name(name: str, output_type: str, bleu_tokenize: str = "13a") -> Metric:
    """Return the metric of that name; names are checked where task files are read."""
    if output_type == "loglikelihood":
        return {
            "acc": Metric(lambda outcome: float(outcome.is_greedy), None),
            "perplexity": Metric(lambda outcome: outcome.logprob, _perplexity),
        }[name]
    return {
        "acc": Metric(lambda outcome: float(outcome.predicted == outcome.gold), None),
        "acc_norm": Metric(_is_right_by_length, None),
        "macro_f1": Metric(lambda outcome: (outcome.predicted, outcome.gold), lambda pairs: macro_f1(*_columns(pairs))),
        "pearson": Metric(_expected_and_right, lambda pairs: pearson(*_columns(pairs))),
        "spearman": Metric(_expected_and_right, lambda pairs: spearman(*_columns(pairs))),
        "exact_match": Metric(lambda answer: best(exact_match, answer), None),
        "f1": Metric(lambda answer: best(character_f1, answer), None),
        "bleu": Metric(lambda answer: answer, lambda answers: _corpus_score(BLEU(tokenize=bleu_tokenize), answers)),
        "chrf": Metric(lambda answer: answer, lambda answers: _corpus_score(CHRF(), answers)),
    }[name]


def normalized(text: str) -> str:
    """Return a text in lower case, with quotes and brackets as spaces, no other punctuation, and single spaces."""
    return " ".join(text.lower().translate(DROPPED).split())


def exact_match(text: str, right: str) -> float:
    """Return 1 where the normalized texts are equal, else 0."""
    return float(normalized(text) == normalized(right))


def character_f1(text: str, right: str) -> float:
    """Return the harmonic mean of precision and recall over the characters of the normalized texts, without spaces."""
    predicted, target = (Counter(normalized(each).replace(" ", "")) for each in (text, right))
    shared = (predicted & target).total()
    return 2 * shared / (predicted.total() + target.total()) if shared else 0.0


def best(measure: Callable[[str, str], float], answer: Answer) -> float:
    """Return the measure against the right answer that fits best."""
    return max(measure(answer.text, right) for right in answer.right)


def _is_right_by_length(outcome: Choice) -> float:
    """Return whether the choice of highest log-likelihood a character is right: lm_eval's acc_norm."""
    by_length = [total / len(choice) for total, choice in zip(outcome.logprobs, outcome.choices, strict=True)]
    return float(int(np.argmax(by_length)) == outcome.gold)


def _expected_and_right(outcome: Choice) -> tuple[float, float]:
    """Return the mean of the choices as numbers under the model, and the right number."""
    weights = np.exp(np.array(outcome.logprobs) - max(outcome.logprobs))
    values = np.array([float(choice) for choice in outcome.choices])
    return float((weights * values).sum() / weights.sum()), outcome.value


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[Sequence[float], Sequence[float]]:
    predicted, right = zip(*pairs, strict=True)
    return predicted, right


def _perplexity(logprobs: Sequence[float]) -> float:
    """Return exp of a target's mean negative log-likelihood: a word's and not a token's, as LAMBADA counts it."""
    return perplexity_from_loss(-float(np.mean(logprobs)))


def _corpus_score(metric: BLEU | CHRF, answers: Sequence[Answer]) -> float:
    """Return sacrebleu's score over all documents; one with fewer right answers than another repeats its first."""
    most = max(len(answer.right) for answer in answers)
    references = [
        [answer.right[number] if number < len(answer.right) else answer.right[0] for answer in answers]
        for number in range(most)
    ]
    return float(metric.corpus_score([answer.text for answer in answers], references).score)
