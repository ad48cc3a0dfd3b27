"""What needs no pre-training, to compare a fine-tuned model with: scikit-learn on words and on character n-grams.

Classes come from logistic regression over TF-IDF, each text of a pair with features of its own. For pairs with a score,
and contexts with choices, the answer is the cosine of the texts' TF-IDF vectors: their scale does not matter to a
correlation, and the choice of highest cosine is the answer. Particles and endings are written onto Korean words, so
character n-grams find the stems that words hide.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

MAX_CHARACTERS = 8_000_000
"""Characters of the training texts that are learned from; of more, rows at equal distances."""
MAX_ITERATIONS = 300
"""Of the regression."""
MIN_ROWS_FREQUENT = 1000
"""Rows from which on n-grams of one row alone are left out: they are most of the memory, and decide nothing."""
Texts = tuple[str, ...]
"""Of an example: one, a pair, or a context and its choices."""


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline that has learned from the training rows."""

    name: str
    note: str
    """What was cut so that it stays quick; empty: nothing."""
    predict: Callable[[Sequence[Texts]], NDArray[Any]]
    """Returns an answer a row: indices of classes or choices, or numbers."""


def fit_baselines(
    kind: Literal["class", "choice", "number"],
    texts: Sequence[Texts],
    answers: NDArray[Any],
    still_working: Callable[[], None] = lambda: None,
) -> Iterator[FittedBaseline]:
    """Fit and yield each baseline, the same for the same rows.

    Args:
        kind: of the answers, as in `Predictions`.
        texts: of the training rows, each as many or, with choices, a context and any number.
        answers: [rows]; read for classes alone.
        still_working: called at each text, also when answers are predicted.
    """
    stride = -(-sum(len(text) for row in texts for text in row) // MAX_CHARACTERS)
    kept, labels = texts[:: max(1, stride)], answers[:: max(1, stride)]
    cut = f"learned from {len(kept):,} of {len(texts):,} rows, at equal distances" if stride > 1 else ""
    min_count = 2 if len(kept) >= MIN_ROWS_FREQUENT else 1
    units: dict[str, tuple[Any, dict[str, Any]]] = {
        "words": (TfidfVectorizer(token_pattern=r"\S+"), {}),
        "character n-grams": (
            TfidfVectorizer(analyzer="char", ngram_range=(1, 4)),
            {"sublinear_tf": True, "min_df": min_count},
        ),
    }
    for name, (units_of, weights) in units.items():
        vectorizer = partial(TfidfVectorizer, analyzer=_Watched(units_of.build_analyzer(), still_working), **weights)
        if kind == "class":
            yield _regression(name, cut, vectorizer, kept, labels)
        else:
            features = vectorizer().fit([text for row in kept for text in row])
            yield FittedBaseline(name, cut, _Similarity(features, kind == "choice").answers)


@dataclass(frozen=True)
class _Watched:
    """Finds the units of a text, and says that work goes forward."""

    units_of: Callable[[str], list[str]]
    still_working: Callable[[], None]

    def __call__(self, text: str) -> list[str]:
        self.still_working()
        return self.units_of(text)


def _regression(
    name: str, cut: str, vectorizer: Callable[[], Any], texts: Sequence[Texts], labels: NDArray[Any]
) -> FittedBaseline:
    if len(np.unique(labels)) < 2:
        # The rows that were kept may be of one class where another is very rare.
        return FittedBaseline(name, cut, lambda rows: np.full(len(rows), labels[0]))
    features = [vectorizer().fit(column) for column in zip(*texts, strict=True)]
    model = LogisticRegression(max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(_columns(features, texts), labels)
    stopped = f"stopped after {MAX_ITERATIONS} iterations" if int(np.max(model.n_iter_)) >= MAX_ITERATIONS else ""
    note = ", ".join(part for part in (cut, stopped) if part)
    return FittedBaseline(name, note, lambda rows: np.asarray(model.predict(_columns(features, rows))))


def _columns(features: Sequence[Any], texts: Sequence[Texts]) -> Any:
    columns = zip(*texts, strict=True)
    return sparse.hstack([each.transform(column) for each, column in zip(features, columns, strict=True)], format="csr")


@dataclass(frozen=True)
class _Similarity:
    """How alike texts are: the cosine of their vectors."""

    features: Any
    chooses: bool

    def answers(self, rows: Sequence[Texts]) -> NDArray[Any]:
        """Return the choice that is most like the context, or how alike the texts of a pair are."""
        found = [self._cosines(row) for row in rows]
        return np.array([int(each.argmax()) if self.chooses else float(each[0]) for each in found])

    def _cosines(self, row: Texts) -> NDArray[np.float64]:
        vectors = self.features.transform(row)
        return np.asarray((vectors[1:] @ vectors[0].T).toarray(), dtype=np.float64)[:, 0]
