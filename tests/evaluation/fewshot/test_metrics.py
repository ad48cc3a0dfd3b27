import math

import numpy as np
import pytest

pytest.importorskip("sacrebleu", reason="the extra `eval` is not installed")

from scipy import stats

from malmoi.evaluation.fewshot.metrics import (
    Answer,
    Choice,
    Continuation,
    character_f1,
    exact_match,
    normalized,
)
from malmoi.evaluation.fewshot.metrics import metric_by_name as metric

CHOICES = ("나쁨", "아주 좋음")


def choice(first: float, second: float, gold: int) -> Choice:
    return Choice(CHOICES, (first, second), gold)


def test_accuracy_counts_the_most_likely_choice() -> None:
    outcomes = [choice(-1, -2, 0), choice(-1, -2, 1), choice(-3, -2, 1), choice(-3, -2, 0)]
    assert metric("acc", "multiple_choice").score(outcomes) == 0.5


def test_normalized_accuracy_divides_by_characters() -> None:
    # -4 over 2 characters against -5 over 5: the longer one is more likely a character.
    outcomes = [choice(-4.0, -5.0, 1)]
    assert metric("acc", "multiple_choice").score(outcomes) == 0.0
    assert metric("acc_norm", "multiple_choice").score(outcomes) == 1.0


def test_macro_f1_is_the_mean_of_the_classes_f1() -> None:
    # Right: 0 0 0 1. Said: 0 0 1 1. Class 0: precision 1, recall 2/3, F1 4/5. Class 1: precision 1/2, recall 1, F1 2/3.
    outcomes = [choice(0, -1, 0), choice(0, -1, 0), choice(-1, 0, 0), choice(-1, 0, 1)]
    assert metric("macro_f1", "multiple_choice").score(outcomes) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_correlations_are_of_the_expected_number() -> None:
    numbers = ("0", "1", "2")
    rights = [0.0, 0.5, 2.0, 1.0]
    odds = [(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.0, 0.2, 0.8), (0.5, 0.25, 0.25)]
    expected = [0.3, 0.5, 1.8, 0.75]
    outcomes = [
        Choice(numbers, tuple(math.log(p) if p else -math.inf for p in each), 0, right)
        for each, right in zip(odds, rights, strict=True)
    ]
    assert metric("pearson", "multiple_choice").score(outcomes) == pytest.approx(stats.pearsonr(expected, rights)[0])
    assert metric("spearman", "multiple_choice").score(outcomes) == pytest.approx(1.0)
    ties = [*outcomes, Choice(numbers, (0.0, -math.inf, -math.inf), 0, 2.0), outcomes[0]]
    pairs = ([*expected, 0.0, 0.3], [*rights, 2.0, 0.0])
    assert metric("spearman", "multiple_choice").score(ties) == pytest.approx(stats.spearmanr(*pairs)[0])
    constant = [Choice(numbers, (0.0, -math.inf, -math.inf), 0, right) for right in rights]
    assert metric("pearson", "multiple_choice").score(constant) == 0.0


def test_exact_match_ignores_quotes_and_punctuation() -> None:
    assert normalized("  《훈민정음》, (1446년)!  ABC ") == "훈민정음 1446년 abc"
    assert exact_match("세종대왕.", "세종대왕") == 1.0
    assert exact_match("세종대왕이", "세종대왕") == 0.0


def test_f1_is_over_characters_so_that_a_particle_costs_little() -> None:
    # 5 characters said, 4 right, 4 shared: precision 4/5, recall 1.
    assert character_f1("세종대왕이", "세종대왕") == pytest.approx(8 / 9)
    # Characters count as often as both hold them: 가 twice against once.
    assert character_f1("가가", "가나") == pytest.approx(1 / 2)
    assert character_f1("이순신", "세종") == 0.0
    assert character_f1("", "세종") == 0.0
    assert character_f1("1446 년", "1446년") == 1.0


def test_the_best_of_several_right_answers_counts() -> None:
    answers = [Answer("세종", ("세종대왕", "세종")), Answer("모름", ("가", "나"))]
    assert metric("exact_match", "generate_until").score(answers) == 0.5
    assert metric("f1", "generate_until").score(answers) == 0.5


def test_perplexity_is_a_targets_and_not_a_tokens() -> None:
    outcomes = [Continuation(math.log(0.5), True), Continuation(math.log(0.125), False)]
    assert metric("perplexity", "loglikelihood").score(outcomes) == pytest.approx(4.0)
    assert metric("acc", "loglikelihood").score(outcomes) == 0.5


def test_bleu_by_hand() -> None:
    # 4 words, 3 of 4 right, 2 of 3 pairs, 1 of 2 triples, 0 of 1: sacrebleu's exponential smoothing makes that 1/2.
    answers = [Answer("the cat sat down", ("the cat sat up",))]
    by_hand = 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert metric("bleu", "generate_until").score(answers) == pytest.approx(by_hand)
    assert metric("bleu", "generate_until").score([Answer("a b c d e", ("a b c d e",))]) == pytest.approx(100)


def test_bleu_of_korean_is_of_characters() -> None:
    # Five characters against five, one replaced at the end: 4/5, 3/4, 2/3, 1/2.
    answers = [Answer("나는간다요", ("나는간다네",))]
    by_hand = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert metric("bleu", "generate_until", "char").score(answers) == pytest.approx(by_hand)


def test_chrf_by_hand() -> None:
    # Orders 1 to 3 exist: 2 of 3, 1 of 2, 0 of 1, the same as precision and recall; others do not count.
    answers = [Answer("가나다", ("가나라",))]
    assert metric("chrf", "generate_until").score(answers) == pytest.approx(100 * np.mean([2 / 3, 1 / 2, 0]), abs=0.01)


def test_a_set_with_unequal_numbers_of_right_answers_scores_each_against_all_its_own() -> None:
    answers = [Answer("a b c d", ("x y z w", "a b c d")), Answer("e f g h", ("e f g h",))]
    assert metric("bleu", "generate_until").score(answers) == pytest.approx(100)
