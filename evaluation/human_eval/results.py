"""Results of a blind test: accuracy a model, as in GPT-3's paper, and agreement of raters. Needs no torch."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from scipy import stats
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import cohen_kappa_score

from malmoi.errors import UserError
from malmoi.evaluation.human_eval.items import Item, JudgeTest
from malmoi.evaluation.human_eval.ratings import CANNOT_TELL, SCALE, Rating

CONFIDENCE = 0.95
CHANCE = 0.5
CONTROL = "control"


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class RaterScore:
    """How well one rater told one writer's texts from people's."""

    rater: str
    accuracy: float
    """Balanced accuracy: mean of the fractions right among people's and the writer's texts, "cannot tell" excluded;
    0.5 is chance."""


@dataclass(frozen=True)
class WriterResult:
    """A model, or the control, against people."""

    writer: str
    """Model folder, or `control`."""
    texts: int
    ratings: int
    """Answers to the writer's own texts."""
    cannot_tell: float | None
    """Fraction of them that are "cannot tell"; none without answers."""
    accuracy: float | None
    """Mean over raters; none where no rater decided on both kinds of text."""
    interval: Interval | None
    """Student's 95% interval of that mean, clipped to 0 and 1; none with one rater."""
    p_chance: float | None
    """Two-sided t-test of the raters' accuracies against 0.5; none with one rater, or where all are equal."""
    t_control: float | None
    """Paired t of raters' accuracies against the control, negative where the model is harder to recognize."""
    p_control: float | None
    """Its two-sided p; both none with one rater, without control, or where all differences are equal."""
    recognized: int
    """Answers to the writer's own texts that recognized the machine."""
    decided: int
    """Answers to them other than "cannot tell"."""
    recognized_interval: Interval | None
    """Clopper and Pearson's exact 95% interval of recognized / decided, with answers as independent draws."""
    raters: tuple[RaterScore, ...]


@dataclass(frozen=True)
class Agreement:
    """Agreement of raters on the five-point scale."""

    kappa: float | None
    """Cohen's kappa with quadratic weights, mean over pairs of raters; none where it is defined for no pair."""
    pairs: int
    """Pairs of raters that it is the mean over."""
    texts: float
    """Texts that both raters of such a pair answered, mean over pairs."""


@dataclass(frozen=True)
class JudgeResults:
    """All results of a blind test."""

    raters: int
    """Raters whose answers count."""
    excluded: int
    """Raters excluded for too low an accuracy on the control."""
    human_as_human: int
    """Answers that recognized a person's text as one."""
    human_decided: int
    """Answers to people's texts other than "cannot tell"."""
    human_ratings: int
    writers: tuple[WriterResult, ...]
    """The models in order, then the control."""
    agreement: Agreement

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def judge_results(test: JudgeTest, ratings: Sequence[Rating], min_control_accuracy: float = 0.0) -> JudgeResults:
    """Return the results of `test`.

    Args:
        min_control_accuracy: fraction of the control texts that a rater must have recognized as a machine's to count.

    Raises:
        UserError: nobody has answered yet, no rater counts, or there is no control to be accurate on.
    """
    control = test.items_by("control")
    if min_control_accuracy and not control:
        raise UserError("--min_control_accuracy: this test has no control texts; leave the option out")
    if not ratings:
        raise UserError("nobody has answered yet; show the texts to raters with `malmoi judge serve`")
    answers: dict[str, dict[str, int]] = {}
    for rating in ratings:
        answers.setdefault(rating.rater, {})[rating.item] = rating.answer
    counted = {rater: own for rater, own in answers.items() if _control_accuracy(own, control) >= min_control_accuracy}
    if not counted:
        raise UserError(
            f"--min_control_accuracy {min_control_accuracy}: none of {len(answers)} raters reaches it; lower it"
        )

    people = test.items_by("human")
    of_control = _scores(counted, people, control)
    writers = [_writer(model, counted, people, test.items_by("model", model), of_control) for model in test.models]
    if control:
        writers.append(_writer(CONTROL, counted, people, control, ()))
    human_decided = _decided(counted, people)
    return JudgeResults(
        raters=len(counted),
        excluded=len(answers) - len(counted),
        human_as_human=sum(answer < CANNOT_TELL for answer in human_decided),
        human_decided=len(human_decided),
        human_ratings=sum(len(_of(own, people)) for own in counted.values()),
        writers=tuple(writers),
        agreement=_agreement(counted),
    )


def _of(own: dict[str, int], items: Sequence[Item]) -> list[int]:
    return [own[item.id] for item in items if item.id in own]


def _control_accuracy(own: dict[str, int], control: Sequence[Item]) -> float:
    answers = _of(own, control)
    return sum(answer > CANNOT_TELL for answer in answers) / len(answers) if answers else 0.0


def _decided(counted: dict[str, dict[str, int]], items: Sequence[Item]) -> list[int]:
    return [answer for own in counted.values() for answer in _of(own, items) if answer != CANNOT_TELL]


def _scores(
    counted: dict[str, dict[str, int]], people: Sequence[Item], written: Sequence[Item]
) -> tuple[RaterScore, ...]:
    """Return the accuracy of each rater who decided on texts of both kinds.

    Both kinds weigh the same: a rater who calls every text a machine's is at 0.5, however many there are of each.
    """
    scores = []
    for rater, own in counted.items():
        human = [answer for answer in _of(own, people) if answer != CANNOT_TELL]
        machine = [answer for answer in _of(own, written) if answer != CANNOT_TELL]
        if human and machine:
            right = fmean(answer < CANNOT_TELL for answer in human), fmean(answer > CANNOT_TELL for answer in machine)
            scores.append(RaterScore(rater, fmean(right)))
    return tuple(scores)


def _writer(
    name: str,
    counted: dict[str, dict[str, int]],
    people: Sequence[Item],
    written: Sequence[Item],
    of_control: Sequence[RaterScore],
) -> WriterResult:
    scores = _scores(counted, people, written)
    accuracies = [score.accuracy for score in scores]
    ratings = [answer for own in counted.values() for answer in _of(own, written)]
    decided = [answer for answer in ratings if answer != CANNOT_TELL]
    recognized = sum(answer > CANNOT_TELL for answer in decided)
    control = {score.rater: score.accuracy for score in of_control}
    differences = [score.accuracy - control[score.rater] for score in scores if score.rater in control]
    t_control, p_control = _t_test(differences, 0.0)
    return WriterResult(
        writer=name,
        texts=len(written),
        ratings=len(ratings),
        cannot_tell=ratings.count(CANNOT_TELL) / len(ratings) if ratings else None,
        accuracy=fmean(accuracies) if accuracies else None,
        interval=_interval_of_mean(accuracies),
        p_chance=_t_test(accuracies, CHANCE)[1],
        t_control=t_control,
        p_control=p_control,
        recognized=recognized,
        decided=len(decided),
        recognized_interval=_exact_interval(recognized, len(decided)),
        raters=scores,
    )


def _interval_of_mean(values: Sequence[float]) -> Interval | None:
    if len(values) < 2:
        return None
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(max(0.0, fmean(values) - reach), min(1.0, fmean(values) + reach))


def _t_test(values: Sequence[float], mean: float) -> tuple[float | None, float | None]:
    """Return t and two-sided p of a one-sample t-test; none where the values do not vary, which leaves it undefined."""
    if len(values) < 2 or math.isclose(min(values), max(values), abs_tol=1e-12):
        return None, None
    tested = stats.ttest_1samp(values, mean)
    return float(tested.statistic), float(tested.pvalue)


def _exact_interval(hits: int, count: int) -> Interval | None:
    if not count:
        return None
    interval = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="exact")
    return Interval(float(interval.low), float(interval.high))


def _agreement(counted: dict[str, dict[str, int]]) -> Agreement:
    """Return Cohen's weighted kappa (1968) over all pairs of raters who share texts, and their mean (Light, 1971)."""
    kappas, shared_texts = [], []
    for first, second in combinations(counted.values(), 2):
        shared = sorted(first.keys() & second.keys())
        if not shared:
            continue
        with warnings.catch_warnings():
            # Two raters who gave one and the same answer throughout have no kappa: it is nan, and excluded below.
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            kappa = float(
                cohen_kappa_score(
                    [first[item] for item in shared],
                    [second[item] for item in shared],
                    labels=list(SCALE),
                    weights="quadratic",
                )
            )
        if math.isfinite(kappa):
            kappas.append(kappa)
            shared_texts.append(len(shared))
    if not kappas:
        return Agreement(None, 0, 0.0)
    return Agreement(fmean(kappas), len(kappas), fmean(shared_texts))
