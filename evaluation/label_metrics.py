"""Metrics of predictions for labeled examples, each with a 95% confidence interval.

Computed by scikit-learn and scipy. Accuracy has Wilson's interval and Pearson's correlation Fisher's; the others are
bootstrapped over examples (Efron and Tibshirani, 1993), percentiles of resamples drawn from a fixed seed.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

RESAMPLES = 1000
SEED = 42
PERCENTILES = (2.5, 97.5)
MIN_EXAMPLES_FISHER = 4
"""Examples from which on Fisher's interval is defined."""


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its confidence interval."""

    name: str
    value: float
    low: float | None
    """None where no interval was asked for, or none is defined."""
    high: float | None


@dataclass(frozen=True)
class Predictions:
    """Predictions beside the labels."""

    kind: Literal["class", "choice", "number"]
    """Choices differ in every example, so metrics by class mean nothing for them."""
    predicted: NDArray[Any]
    """[examples]: indices of classes, or numbers."""
    labels: NDArray[Any]
    """[examples], of the same kind."""


def label_metrics(predictions: Predictions, resamples: int = RESAMPLES) -> tuple[Estimate, ...]:
    """Return accuracy; for classes also macro_f1 and matthews; for numbers pearson and spearman instead.

    Args:
        resamples: of the bootstrap; 0: no metric has an interval.
    """
    predicted, labels = predictions.predicted, predictions.labels
    if predictions.kind == "number":
        return _pearson_estimate(predicted, labels, resamples > 0), _spearman_estimate(predicted, labels, resamples)
    hits = predicted == labels
    accuracy = _accuracy(int(hits.sum()), len(hits), resamples > 0)
    if predictions.kind == "choice":
        return (accuracy,)
    return (accuracy, *_class_estimates(predicted, labels, resamples))


@dataclass(frozen=True)
class ClassScores:
    """How well a class is found."""

    precision: float
    """Of the examples that were given the class, the fraction that are of it; 0 where none was given it."""
    recall: float
    """Of the examples of the class, the fraction that were given it; 0 where there are none."""
    f1: float
    examples: int
    """Of the class."""


def class_scores(predictions: Predictions, num_classes: int) -> tuple[ClassScores, ...]:
    """Return the scores of each class, in the order of their indices."""
    scored = precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=range(num_classes), zero_division=0.0
    )
    return tuple(ClassScores(*row) for row in zip(*(column.tolist() for column in scored), strict=True))


def confusion_counts(predictions: Predictions, num_classes: int) -> tuple[tuple[int, ...], ...]:
    """Return how many examples of each class (row) were given each class (column)."""
    counts = confusion_matrix(predictions.labels, predictions.predicted, labels=range(num_classes))
    return tuple(map(tuple, counts.tolist()))


def macro_f1(predicted: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the mean F1 over the classes that occur among predictions or labels.

    Args:
        weights: how many examples each entry stands for; none: one.
    """
    return float(f1_score(labels, predicted, average="macro", sample_weight=weights))


def pearson(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Return Pearson's correlation; 0 where it is undefined, since constant predictions carry no information."""
    return 0.0 if _is_uncorrelated(predicted, labels) else float(stats.pearsonr(predicted, labels).statistic)


def spearman(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Return Spearman's rank correlation; 0 where it is undefined, since constant predictions carry no information."""
    return 0.0 if _is_uncorrelated(predicted, labels) else float(stats.spearmanr(predicted, labels).statistic)


def _is_uncorrelated(predicted: ArrayLike, labels: ArrayLike) -> bool:
    return np.size(labels) < 2 or bool(np.ptp(predicted) == 0) or bool(np.ptp(labels) == 0)


def _accuracy(hits: int, count: int, with_interval: bool) -> Estimate:
    if not with_interval:
        return Estimate("accuracy", hits / count, None, None)
    interval = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return Estimate("accuracy", hits / count, float(interval.low), float(interval.high))


def _class_estimates(predicted: NDArray[Any], labels: NDArray[Any], resamples: int) -> tuple[Estimate, ...]:
    """Bootstrap over the confusion matrix: to resample examples is to resample the counts of its cells."""
    pairs, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
    names, cells = np.unique(pairs, return_inverse=True)
    given, answered = cells.reshape(pairs.shape)
    drawn = np.random.default_rng(SEED).multinomial(len(labels), counts / len(labels), resamples)
    values, *resampled = (_f1_and_matthews(given, answered, row, len(names)) for row in (counts, *drawn))
    metrics = ("macro_f1", "matthews")
    columns = zip(*resampled, strict=True) if resampled else ((), ())
    return tuple(
        _bootstrapped(name, value, list(column)) for name, value, column in zip(metrics, values, columns, strict=True)
    )


def _f1_and_matthews(
    labels: NDArray[Any], predicted: NDArray[Any], counts: NDArray[Any], num_classes: int
) -> tuple[float, float]:
    """Return `macro_f1` and scikit-learn's `matthews_corrcoef` of a confusion matrix, without its checks of each input.

    Args:
        labels, predicted: [cells], indices of classes.
        counts: [cells], examples of each; a class that none is of, or was given, is none of the classes.
    """
    hits = labels == predicted
    of_class, given = (np.bincount(cells, counts, num_classes) for cells in (labels, predicted))
    right = np.bincount(labels[hits], counts[hits], num_classes)
    occurs = of_class + given > 0
    total = counts.sum()
    spread = math.sqrt((total**2 - of_class @ of_class) * (total**2 - given @ given))
    matthews = (right.sum() * total - of_class @ given) / spread if spread > 0 else 0.0
    return float((2 * right[occurs] / (of_class + given)[occurs]).mean()), float(matthews)


def _pearson_estimate(predicted: NDArray[Any], labels: NDArray[Any], with_interval: bool) -> Estimate:
    value = pearson(predicted, labels)
    if not with_interval or len(labels) < MIN_EXAMPLES_FISHER or _is_uncorrelated(predicted, labels):
        return Estimate("pearson", value, None, None)
    interval = stats.pearsonr(predicted, labels).confidence_interval(0.95)
    return Estimate("pearson", value, float(interval.low), float(interval.high))


def _spearman_estimate(predicted: NDArray[Any], labels: NDArray[Any], resamples: int) -> Estimate:
    if _is_uncorrelated(predicted, labels):
        return Estimate("spearman", 0.0, None, None)
    generator = np.random.default_rng(SEED)
    draws = [generator.integers(0, len(labels), len(labels)) for _ in range(resamples)]
    values = [spearman(predicted[rows], labels[rows]) for rows in draws]
    return _bootstrapped("spearman", spearman(predicted, labels), values)


def _bootstrapped(name: str, value: float, values: list[float]) -> Estimate:
    finite = [each for each in values if math.isfinite(each)]
    if not finite:
        return Estimate(name, value, None, None)
    low, high = np.percentile(finite, PERCENTILES)
    return Estimate(name, value, float(low), float(high))
