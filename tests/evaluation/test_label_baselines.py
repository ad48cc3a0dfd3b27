"""Baselines learn from the training rows alone, the same each time, and say what they cut."""

from typing import Literal

import numpy as np
import pytest

from malmoi.evaluation import label_baselines
from malmoi.evaluation.label_baselines import Texts, fit_baselines
from tests.train.labeled import rows_of

WORDS, CHARACTERS = "words", "character n-grams"
STEMS = {0: "지루하", 1: "즐겁"}
TRAINING_ENDS = ("다", "네", "고", "며", "지만", "니", "게", "거든")
OTHER_ENDS = ("군요", "더라", "습니다", "구나")


def inflected(ends: tuple[str, ...]) -> tuple[list[Texts], np.ndarray]:
    """Return sentences of one word, a stem with an ending, labeled by the stem."""
    rows = [((f"{stem}{end}",), label) for end in ends for label, stem in STEMS.items()]
    return [texts for texts, _ in rows], np.array([label for _, label in rows])


def test_character_n_grams_know_a_stem_with_another_ending_and_words_do_not() -> None:
    other, right = inflected(OTHER_ENDS)
    correct = {
        each.name: (each.predict(other) == right).mean() for each in fit_baselines("class", *inflected(TRAINING_ENDS))
    }
    assert correct == {WORDS: 0.5, CHARACTERS: 1.0}


def test_the_texts_of_a_pair_are_told_apart() -> None:
    texts = [("가 나", "다 라"), ("다 라", "가 나")] * 6
    labels = np.array([0, 1] * 6)
    for baseline in fit_baselines("class", texts, labels):
        assert baseline.predict(texts).tolist() == labels.tolist(), baseline.name


def test_a_score_is_how_alike_a_pair_is_and_a_choice_the_one_most_like_its_context() -> None:
    pairs = [("비가 많이 온다", "비가 많이 온다"), ("비가 많이 온다", "비가 온다"), ("비가 온다", "고양이 잔다")]
    for baseline in fit_baselines("number", pairs, np.zeros(3)):
        same, near, far = baseline.predict(pairs)
        assert same == pytest.approx(1) and same > near > far, baseline.name
    row = ("비가 많이 온다", "고양이 잔다", "비가 그쳤다")
    for baseline in fit_baselines("choice", [row], np.zeros(1)):
        assert baseline.predict([row]).tolist() == [1], baseline.name


@pytest.mark.parametrize("kind", ["class", "choice", "number"])
def test_it_says_that_it_is_working_at_each_text(kind: Literal["class", "choice", "number"]) -> None:
    """Other ranks wait for it, and think it lost otherwise."""
    calls: list[None] = []
    texts, labels = [("가", "나"), ("다", "라")], np.array([0, 1])
    for baseline in fit_baselines(kind, texts, labels, lambda: calls.append(None)):
        assert len(calls) >= 4, "when it learns"
        calls.clear()
        baseline.predict(texts)
        assert len(calls) >= 4, "when it answers"
        calls.clear()


def test_the_same_rows_give_the_same_answers() -> None:
    rows = rows_of("classification", "", 200)
    texts = [(row["text"],) for row in rows]
    labels = np.array([row["label"] for row in rows])
    first, second = (
        [baseline.predict(texts).tolist() for baseline in fit_baselines("class", texts, labels)] for _ in range(2)
    )
    assert first == second


def test_of_too_much_text_rows_at_equal_distances_are_learned_from_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, labels = [("가가가가",), ("나나나나",)] * 50, np.array([0, 1] * 50)
    assert [each.note for each in fit_baselines("class", texts, labels)] == ["", ""]
    monkeypatch.setattr(label_baselines, "MAX_CHARACTERS", 150)
    for baseline in fit_baselines("class", texts, labels):
        assert baseline.note == "learned from 34 of 100 rows, at equal distances"
        assert baseline.predict(texts).tolist() == labels.tolist()
    # Every other row is of one class.
    monkeypatch.setattr(label_baselines, "MAX_CHARACTERS", 200)
    assert [each.predict(texts[:2]).tolist() for each in fit_baselines("class", texts, labels)] == [[0, 0]] * 2
