"""Whether a classifier is right as often as its probabilities say.

Expected calibration error with bins of equal width (Naeini et al., "Obtaining Well Calibrated Probabilities Using
Bayesian Binning", 2015; Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3): the mean over the
examples of the distance between a bin's accuracy and its mean confidence. The confidence is the probability of the
answer. 0 is perfect; a model that is always sure of wrong answers has 1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """The answers whose probability is in a range."""

    low: float
    """Exclusive."""
    high: float
    """Inclusive."""
    examples: int
    confidence: float
    """Their mean probability; 0 where there are none."""
    accuracy: float
    """The fraction of them that is right; 0 where there are none."""


@dataclass(frozen=True)
class Calibration:
    """The calibration of answers to a file."""

    error: float
    """Expected calibration error, 0 to 1."""
    bins: tuple[CalibrationBin, ...]
    """Of equal width, from 0 to 1."""


def calibration(probabilities: ArrayLike, labels: ArrayLike) -> Calibration:
    """Return how well the probability of the most likely answer is its chance to be right.

    Args:
        probabilities: [examples, classes], each row's sum 1.
        labels: [examples], the number of the right one.
    """
    given: NDArray[np.float64] = np.asarray(probabilities, dtype=np.float64)
    confidence, hits = given.max(1), given.argmax(1) == np.asarray(labels)
    edges = np.linspace(0, 1, BINS + 1)
    # Rounding may put a probability a little above 1.
    numbers = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    bins = []
    for number in range(BINS):
        own = numbers == number
        count = int(own.sum())
        means = (float(confidence[own].mean()), float(hits[own].mean())) if count else (0.0, 0.0)
        bins.append(CalibrationBin(float(edges[number]), float(edges[number + 1]), count, *means))
    error = sum(each.examples * abs(each.accuracy - each.confidence) for each in bins) / len(confidence)
    return Calibration(error, tuple(bins))
