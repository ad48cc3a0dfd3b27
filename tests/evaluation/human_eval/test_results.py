"""The results of a blind test, against a small one computed by hand (judging.py)."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmoi.errors import UserError
from malmoi.evaluation.human_eval.ratings import Rating
from tests.evaluation.human_eval.judging import MODEL, known_ratings, small_test

pytest.importorskip("sklearn", reason="the extra `judge` is not installed")
from malmoi.evaluation.human_eval.results import judge_results


def test_accuracy_interval_and_t_tests_are_the_ones_computed_by_hand() -> None:
    results = judge_results(small_test(), known_ratings())
    model, control = results.writers
    assert (model.writer, control.writer) == (MODEL, "control")
    assert [score.accuracy for score in model.raters] == pytest.approx([7 / 12, 1, 3 / 8])
    assert [score.accuracy for score in control.raters] == pytest.approx([5 / 6, 3 / 4, 3 / 4])
    assert model.accuracy == pytest.approx(47 / 72)
    assert control.accuracy == pytest.approx(7 / 9)
    # The control's standard error is 1/36; Student's 97.5% point at 2 degrees of freedom is 4.302653.
    assert control.interval is not None
    assert control.interval.low == pytest.approx(7 / 9 - 4.302653 / 36, abs=1e-6)
    assert control.interval.high == pytest.approx(7 / 9 + 4.302653 / 36, abs=1e-6)
    # With 2 degrees of freedom the two-sided p of t is 1 - |t| / sqrt(2 + t^2).
    t_chance = (47 / 72 - 1 / 2) / (math.sqrt(525) / 72 / math.sqrt(3))
    assert model.p_chance == pytest.approx(1 - t_chance / math.sqrt(2 + t_chance**2))
    # Differences to the control: -1/4, 1/4, -3/8.
    assert model.t_control == pytest.approx(-math.sqrt(3 / 7))
    assert model.p_control == pytest.approx(1 - math.sqrt(3 / 17))
    assert control.t_control is None and control.p_control is None


def test_answers_are_counted_without_cannot_tell() -> None:
    results = judge_results(small_test(), known_ratings())
    model = results.writers[0]
    assert (model.texts, model.ratings, model.recognized, model.decided) == (4, 12, 5, 10)
    assert model.cannot_tell == pytest.approx(2 / 12)
    interval = model.recognized_interval
    assert interval is not None
    # Clopper and Pearson's table for 5 of 10.
    assert (interval.low, interval.high) == pytest.approx((0.187086, 0.812914), abs=1e-6)
    assert (results.human_as_human, results.human_decided, results.human_ratings) == (8, 11, 12)


def test_agreement_is_cohens_kappa_with_quadratic_weights_over_shared_texts() -> None:
    ids = [item.id for item in small_test().items]
    # Observed mean square 2, by chance 2 x 2.5 = 5: kappa is 1 - 2/5. The fifth text is one rater's only.
    first = dict(zip(ids, (1, 5, 2, 4, 3), strict=False))
    second = dict(zip(ids, (1, 5, 4, 2), strict=False))
    ratings = [Rating(rater, item, a) for rater, own in (("a", first), ("b", second)) for item, a in own.items()]
    agreement = judge_results(small_test(), ratings).agreement
    assert agreement.kappa == pytest.approx(0.6)
    assert (agreement.pairs, agreement.texts) == (1, 4)


def test_raters_who_all_say_the_same_thing_have_no_kappa_and_no_t_test() -> None:
    ratings = [Rating(rater, item.id, 5) for rater in "ab" for item in small_test().items]
    results = judge_results(small_test(), ratings)
    assert results.agreement.kappa is None
    model = results.writers[0]
    assert model.accuracy == 0.5
    assert model.p_chance is None and model.t_control is None


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_one_answer_to_everything_is_chance_whatever_the_numbers_of_texts(answer: int, human: int, model: int) -> None:
    test = small_test()
    some = replace(test, items=test.items_by("human")[:human] + test.items_by("model")[:model])
    results = judge_results(some, [Rating("a", item.id, answer) for item in some.items])
    assert results.writers[0].accuracy == (None if answer == 3 else 0.5)


def test_one_rater_has_an_accuracy_but_no_interval_over_raters() -> None:
    results = judge_results(small_test(), [rating for rating in known_ratings() if rating.rater == "a"])
    model = results.writers[0]
    assert model.accuracy == pytest.approx(7 / 12)
    assert model.interval is None and model.p_chance is None and results.agreement.kappa is None
    assert model.recognized_interval is not None


def test_raters_who_do_not_recognize_the_control_can_be_excluded() -> None:
    results = judge_results(small_test(), known_ratings(), min_control_accuracy=0.75)
    assert (results.raters, results.excluded) == (2, 1)
    assert [score.rater for score in results.writers[0].raters] == ["a", "c"]
    with pytest.raises(UserError, match="none of 1 raters reaches it"):
        judge_results(small_test(), [r for r in known_ratings() if r.rater == "b"], min_control_accuracy=0.75)


def test_what_cannot_be_computed_is_refused() -> None:
    test = small_test()
    with pytest.raises(UserError, match="nobody has answered"):
        judge_results(test, [])
    without = replace(test, items=test.items_by("human") + test.items_by("model"))
    with pytest.raises(UserError, match="this test has no control texts"):
        judge_results(without, known_ratings(), min_control_accuracy=0.5)
    assert [writer.writer for writer in judge_results(without, known_ratings()).writers] == [MODEL]
