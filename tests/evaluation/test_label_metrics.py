"""Metrics of labeled examples against cases computed by hand, and intervals whose coverage is as stated."""

import math

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from malmoi.evaluation.label_metrics import (
    PERCENTILES,
    SEED,
    Predictions,
    class_scores,
    confusion_counts,
    label_metrics,
    macro_f1,
    pearson,
    spearman,
)


def values(kind: str, predicted: list[float], labels: list[float], resamples: int = 0) -> dict[str, float]:
    found = label_metrics(Predictions(kind, np.array(predicted), np.array(labels)), resamples)  # type: ignore[arg-type]
    return {estimate.name: estimate.value for estimate in found}


def test_metrics_of_classes_are_those_computed_by_hand() -> None:
    # Two of class 0 right and one wrong, one of class 1 right: 3 of 4.
    found = values("class", [0, 0, 1, 1], [0, 0, 0, 1])
    assert found["accuracy"] == 0.75
    # F1 of 0: 2 x 2 / (2 + 3); of 1: 2 x 1 / (2 + 1).
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    # (tp x tn - fp x fn) / sqrt of the four margins: (1 x 2 - 1 x 0) / sqrt(2 x 1 x 3 x 2).
    assert found["matthews"] == pytest.approx(2 / 12**0.5)


def test_correlations_are_those_computed_by_hand() -> None:
    found = values("number", [1, 2, 3, 10], [1, 2, 3, 4])
    assert found["spearman"] == pytest.approx(1.0)
    # Deviations -3 -2 -1 6 and -1.5 -0.5 0.5 1.5: 14 / sqrt(50 x 5).
    assert found["pearson"] == pytest.approx(14 / 250**0.5)


def test_constant_predictions_are_uncorrelated() -> None:
    assert values("number", [2, 2, 2, 2], [1, 2, 3, 4], 10) == {"pearson": 0.0, "spearman": 0.0}
    assert values("class", [1, 1, 1], [0, 1, 1])["matthews"] == 0.0


def test_choices_have_accuracy_alone() -> None:
    assert values("choice", [0, 1], [0, 0]) == {"accuracy": 0.5}


def test_an_interval_covers_the_true_value_about_as_often_as_stated() -> None:
    """40 data sets of 200 examples whose true accuracy is 0.8, so Matthews is 0.6 for balanced classes."""
    covered = {"accuracy": 0, "macro_f1": 0, "matthews": 0}
    truth = {"accuracy": 0.8, "macro_f1": 0.8, "matthews": 0.6}
    generator = np.random.default_rng(1)
    for _ in range(40):
        labels = generator.integers(0, 2, 200)
        predicted = np.where(generator.random(200) < 0.8, labels, 1 - labels)
        for estimate in label_metrics(Predictions("class", predicted, labels), 60):
            assert estimate.low is not None and estimate.high is not None
            covered[estimate.name] += estimate.low <= truth[estimate.name] <= estimate.high
    assert all(33 <= count <= 40 for count in covered.values()), covered


def test_a_correlations_interval_covers_it_and_narrows_with_examples() -> None:
    generator = np.random.default_rng(2)
    widths = []
    for count in (50, 800):
        labels = generator.normal(size=count)
        found = label_metrics(Predictions("number", labels + generator.normal(size=count), labels), 200)
        for estimate in found:
            assert estimate.low is not None and estimate.high is not None
            assert estimate.low < estimate.value < estimate.high
        widths.append([estimate.high - estimate.low for estimate in found])  # type: ignore[operator]
    assert widths[1][0] < widths[0][0] / 2
    assert widths[1][1] < widths[0][1] / 2


def test_the_metrics_equal_their_definitions_on_random_data_with_ties() -> None:
    """F1 by counting, Pearson's correlation by numpy, Spearman's as that of mean ranks."""
    generator = np.random.default_rng(4)
    for count in (9, 50, 200):
        labels, predicted = generator.integers(0, 5, (2, count))
        by_class = [
            2 * sum((predicted == label) & (labels == label)) / (sum(predicted == label) + sum(labels == label))
            for label in np.union1d(predicted, labels)
        ]
        assert macro_f1(predicted, labels) == pytest.approx(np.mean(by_class), rel=1e-14)
        numbers = np.round(labels + generator.normal(size=count), 1)
        ranks = [[sum(side < each) + (sum(side == each) + 1) / 2 for each in side] for side in (numbers, labels)]
        assert pearson(numbers, labels) == pytest.approx(np.corrcoef(numbers, labels)[0, 1], abs=1e-14)
        assert spearman(numbers, labels) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-14)


Z = 1.959964
"""Of a normal distribution, 95% lies within so many deviations."""


def test_the_interval_of_accuracy_is_wilsons() -> None:
    # Wilson (1927), 60 of 80: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    labels, predicted = np.zeros(80), np.repeat([0, 1], [60, 20])
    [accuracy] = label_metrics(Predictions("choice", predicted, labels))
    middle, half = 0.75 + Z**2 / 160, Z * math.sqrt(0.75 * 0.25 / 80 + Z**2 / 25600)
    expected = [(middle + sign * half) / (1 + Z**2 / 80) for sign in (-1, 1)]
    assert [accuracy.low, accuracy.high] == pytest.approx(expected, rel=1e-5)


def test_the_interval_of_pearson_is_fishers_and_a_bootstrapped_one_is_near_it() -> None:
    generator = np.random.default_rng(3)
    labels = generator.normal(size=900)
    predicted = labels + generator.normal(size=900)
    pearson, spearman = label_metrics(Predictions("number", predicted, labels))
    for estimate, exactness in ((pearson, 1e-6), (spearman, 0.02)):
        # Fisher (1921): atanh(r) is about normal, with deviation 1 / sqrt(n - 3).
        expected = [math.tanh(math.atanh(estimate.value) + sign * Z / math.sqrt(897)) for sign in (-1, 1)]
        assert [estimate.low, estimate.high] == pytest.approx(expected, abs=exactness)


def test_a_bootstrapped_interval_of_classes_is_as_wide_as_theory_says() -> None:
    # Of balanced classes with equal errors macro F1 is close to accuracy, whose deviation is sqrt(p (1 - p) / n).
    labels = np.repeat([0, 1], 500)
    predicted = np.where(np.arange(1000) % 5 == 0, 1 - labels, labels)
    found = {estimate.name: estimate for estimate in label_metrics(Predictions("class", predicted, labels))}
    deviation = math.sqrt(0.8 * 0.2 / 1000)
    for name, scale in (("macro_f1", 1), ("matthews", 2)):
        low, high = found[name].low, found[name].high
        assert low is not None and high is not None
        assert high - low == pytest.approx(2 * Z * deviation * scale, rel=0.1)
        assert (high + low) / 2 == pytest.approx(found[name].value, abs=0.01)


def test_the_bootstrapped_scores_of_classes_are_scikit_learns_of_each_resample() -> None:
    generator = np.random.default_rng(5)
    for classes, count in ((2, 30), (5, 12), (5, 200)):
        labels, predicted = generator.integers(0, classes, (2, count))
        # The counts of the cells are drawn in the order of the cells.
        cells, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
        draws = np.random.default_rng(SEED).multinomial(count, counts / count, 40)
        rows = [np.repeat(cells, drawn, axis=1) for drawn in draws]
        found = label_metrics(Predictions("class", predicted, labels), 40)[1:]
        for estimate, metric in zip(found, (macro_f1, matthews_corrcoef), strict=True):
            low, high = np.percentile([metric(answered, given) for given, answered in rows], PERCENTILES)
            expected = [metric(predicted, labels), low, high]
            assert [estimate.value, estimate.low, estimate.high] == pytest.approx(expected, abs=1e-12)


def test_scores_by_class_are_those_counted_by_hand() -> None:
    """Class 2 is never answered and class 3 never asked for: neither divides by 0."""
    asked = Predictions("class", np.array([0, 0, 1, 1, 3, 0]), np.array([0, 1, 1, 2, 0, 0]))
    assert confusion_counts(asked, 4) == ((2, 0, 0, 1), (1, 1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0))
    assert [(each.precision, each.recall, each.examples) for each in class_scores(asked, 4)] == [
        (pytest.approx(2 / 3), pytest.approx(2 / 3), 3),
        (0.5, 0.5, 2),
        (0.0, 0.0, 1),
        (0.0, 0.0, 0),
    ]
    assert [each.f1 for each in class_scores(asked, 4)] == pytest.approx([2 / 3, 0.5, 0, 0])
