"""Scores of answers to labelled examples, each with a 95% confidence interval.

Computed by scikit-learn and scipy. Accuracy has Wilson's interval and Pearson's correlation Fisher's; the others are
bootstrapped over examples (Efron and Tibshirani, 1993), percentiles of resamples drawn from a fixed seed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

RESAMPLES = 1000
SEED = 42
PERCENTILES = (2.5, 97.5)
SMALLEST_FOR_FISHER = 4
"""Examples from which on Fisher's interval is defined."""


@dataclass(frozen=True)
class Estimate:
    """A score and its interval."""

    name: str
    value: float
    low: float | None
    """None where no interval was asked for, or none is defined."""
    high: float | None


@dataclass(frozen=True)
class Labelled:
    """Answers beside the right ones."""

    kind: Literal["class", "choice", "number"]
    """Choices are told apart by their place alone, so scores by class mean nothing for them."""
    answered: NDArray[Any]
    """`[examples]`: indices of classes, or numbers."""
    right: NDArray[Any]
    """`[examples]`, of the same."""


def label_scores(labelled: Labelled, resamples: int = RESAMPLES) -> tuple[Estimate, ...]:
    """accuracy; with it, for classes, macro_f1 and matthews; for numbers pearson and spearman.

    A correlation with answers that are all the same is 0, since they tell nothing.

    Args:
        resamples: of the bootstrap; 0: no score has an interval.
    """
    if labelled.kind == "number":
        return _correlations(labelled.answered, labelled.right, resamples)
    hits = labelled.answered == labelled.right
    accuracy = _accuracy(int(hits.sum()), len(hits), resamples > 0)
    if labelled.kind == "choice":
        return (accuracy,)
    return (accuracy, *_class_scores(labelled.answered, labelled.right, resamples))


def _accuracy(hits: int, count: int, with_interval: bool) -> Estimate:
    if not with_interval:
        return Estimate("accuracy", hits / count, None, None)
    interval = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return Estimate("accuracy", hits / count, float(interval.low), float(interval.high))


def _class_scores(answered: NDArray[Any], right: NDArray[Any], resamples: int) -> tuple[Estimate, ...]:
    """Of the table of answers against right ones: to draw examples again is to draw the counts of its cells."""
    cells, counts = np.unique(np.stack([right, answered]), axis=1, return_counts=True)

    def macro_f1(weights: NDArray[Any]) -> float:
        # A class that a resample lacks is none of its classes.
        drawn = weights > 0
        return float(f1_score(*cells[:, drawn], average="macro", sample_weight=weights[drawn]))

    def matthews(weights: NDArray[Any]) -> float:
        return float(matthews_corrcoef(cells[0], cells[1], sample_weight=weights))

    drawn = np.random.default_rng(SEED).multinomial(len(right), counts / len(right), resamples)
    scores: list[tuple[str, Callable[[NDArray[Any]], float]]] = [("macro_f1", macro_f1), ("matthews", matthews)]
    return tuple(_bootstrapped(name, score(counts), [score(row) for row in drawn]) for name, score in scores)


def _correlations(answered: NDArray[Any], right: NDArray[Any], resamples: int) -> tuple[Estimate, ...]:
    if _tells_nothing(answered, right):
        return (Estimate("pearson", 0.0, None, None), Estimate("spearman", 0.0, None, None))
    found = stats.pearsonr(answered, right)
    pearson = Estimate("pearson", float(found.statistic), None, None)
    if resamples and len(right) >= SMALLEST_FOR_FISHER:
        interval = found.confidence_interval(0.95)
        pearson = Estimate("pearson", float(found.statistic), float(interval.low), float(interval.high))
    generator = np.random.default_rng(SEED)
    values = []
    for _ in range(resamples):
        rows = generator.integers(0, len(right), len(right))
        values.append(_spearman(answered[rows], right[rows]))
    return (pearson, _bootstrapped("spearman", _spearman(answered, right), values))


def _spearman(answered: NDArray[Any], right: NDArray[Any]) -> float:
    return 0.0 if _tells_nothing(answered, right) else float(stats.spearmanr(answered, right).statistic)


def _tells_nothing(answered: NDArray[Any], right: NDArray[Any]) -> bool:
    return len(right) < 2 or bool(np.ptp(answered) == 0) or bool(np.ptp(right) == 0)


def _bootstrapped(name: str, value: float, values: list[float]) -> Estimate:
    finite = [each for each in values if math.isfinite(each)]
    if not finite:
        return Estimate(name, value, None, None)
    low, high = np.percentile(finite, PERCENTILES)
    return Estimate(name, value, float(low), float(high))
