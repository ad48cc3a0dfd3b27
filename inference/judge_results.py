"""What a blind test found out: accuracy a model, as GPT-3's paper measures it, and how far raters agree. No torch."""

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

from configs.errors import BadInput
from inference.judge_items import Item, JudgeTest
from inference.judge_ratings import CANNOT_TELL, SCALE, Rating

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
    """How often one rater told one writer's texts and people's apart."""

    rater: str
    accuracy: float
    """Mean of the shares of people's and of the writer's texts told rightly, "cannot tell" left out; 0.5 is chance."""


@dataclass(frozen=True)
class WriterResult:
    """A model, or the control, against people."""

    writer: str
    """Model folder, or `control`."""
    texts: int
    ratings: int
    """Answers to the writer's own texts."""
    cannot_tell: float | None
    """Share of those that are "cannot tell"; none without answers."""
    accuracy: float | None
    """Mean over raters; none where no rater answered both kinds of text."""
    interval: Interval | None
    """Student's 95% interval of that mean, cut to 0 and 1; none with one rater."""
    p_chance: float | None
    """Two-sided t-test of the raters' accuracies against 0.5; none with one rater, or where all are equal."""
    t_control: float | None
    """Paired t of raters' accuracies against the control, negative where the model is harder to find out."""
    p_control: float | None
    """Two-sided p of it; both none with one rater, without control, or where all differences are equal."""
    found: int
    """Of the writer's own texts, answers that found the machine."""
    decided: int
    """Answers to them other than "cannot tell"."""
    found_interval: Interval | None
    """Clopper and Pearson's exact 95% interval of found / decided; each answer counts as a draw of its own."""
    raters: tuple[RaterScore, ...]


@dataclass(frozen=True)
class Agreement:
    """How far raters agree on the five steps."""

    kappa: float | None
    """Mean over pairs of raters of Cohen's kappa with quadratic weights; none where no pair has one."""
    pairs: int
    """Pairs of raters that it is the mean of."""
    texts: float
    """Texts that such a pair has both answered, in the mean."""


@dataclass(frozen=True)
class JudgeResults:
    """Everything that a blind test found out."""

    raters: int
    """Whose answers count."""
    left_out: int
    """Raters who found out too little of the control to count."""
    human_as_human: int
    """Answers that took a person's text for one."""
    human_decided: int
    """Answers to people's texts other than "cannot tell"."""
    human_ratings: int
    writers: tuple[WriterResult, ...]
    """The models in order, then the control."""
    agreement: Agreement

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def judge_results(test: JudgeTest, ratings: Sequence[Rating], least_control: float = 0.0) -> JudgeResults:
    """The results of `test`.

    Args:
        least_control: share of the control's texts that a rater must have called a machine's to count.

    Raises:
        BadInput: nobody has answered yet, no rater counts, or `least_control` is out of range or needs a control.
    """
    if not 0 <= least_control <= 1:
        raise BadInput(f"--least_control {least_control}: choose a share from 0 to 1")
    if least_control and not test.of("control"):
        raise BadInput("--least_control: this test has no texts bad on purpose; leave it out")
    if not ratings:
        raise BadInput("nobody has answered yet; show the texts to raters with `malmoi judge serve`")
    answers: dict[str, dict[str, int]] = {}
    for rating in ratings:
        answers.setdefault(rating.rater, {})[rating.item] = rating.answer
    control = test.of("control")
    counted = {rater: own for rater, own in answers.items() if _attention(own, control) >= least_control}
    if not counted:
        raise BadInput(f"--least_control {least_control}: none of {len(answers)} raters found out so much; lower it")

    people = test.of("human")
    of_control = _scores(counted, people, control)
    writers = [_writer(model, counted, people, test.of("model", model), of_control) for model in test.models]
    if control:
        writers.append(_writer(CONTROL, counted, people, control, ()))
    human_decided = _decided(counted, people)
    return JudgeResults(
        raters=len(counted),
        left_out=len(answers) - len(counted),
        human_as_human=sum(answer < CANNOT_TELL for answer in human_decided),
        human_decided=len(human_decided),
        human_ratings=sum(len(_of(own, people)) for own in counted.values()),
        writers=tuple(writers),
        agreement=_agreement(counted),
    )


def _of(own: dict[str, int], items: Sequence[Item]) -> list[int]:
    return [own[item.id] for item in items if item.id in own]


def _attention(own: dict[str, int], control: Sequence[Item]) -> float:
    answers = _of(own, control)
    return sum(answer > CANNOT_TELL for answer in answers) / len(answers) if answers else 0.0


def _decided(counted: dict[str, dict[str, int]], items: Sequence[Item]) -> list[int]:
    return [answer for own in counted.values() for answer in _of(own, items) if answer != CANNOT_TELL]


def _scores(
    counted: dict[str, dict[str, int]], people: Sequence[Item], written: Sequence[Item]
) -> tuple[RaterScore, ...]:
    """The accuracy of each rater who decided on texts of both kinds.

    Both kinds weigh the same: whoever calls everything a machine's is at 0.5, however many texts there are of each.
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
    found = sum(answer > CANNOT_TELL for answer in decided)
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
        found=found,
        decided=len(decided),
        found_interval=_exact_interval(found, len(decided)),
        raters=scores,
    )


def _interval_of_mean(values: Sequence[float]) -> Interval | None:
    if len(values) < 2:
        return None
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(max(0.0, fmean(values) - reach), min(1.0, fmean(values) + reach))


def _t_test(values: Sequence[float], mean: float) -> tuple[float | None, float | None]:
    """Student's t of `values` against `mean`, two-sided; none where they do not vary, which a t-test cannot weigh."""
    if len(values) < 2 or math.isclose(min(values), max(values), abs_tol=1e-12):
        return None, None
    tested = stats.ttest_1samp(values, mean)
    return float(tested.statistic), float(tested.pvalue)


def _exact_interval(found: int, decided: int) -> Interval | None:
    if not decided:
        return None
    interval = stats.binomtest(found, decided).proportion_ci(CONFIDENCE, method="exact")
    return Interval(float(interval.low), float(interval.high))


def _agreement(counted: dict[str, dict[str, int]]) -> Agreement:
    """Cohen, "Weighted kappa" (1968), over all pairs that share texts, and their mean (Light, 1971)."""
    kappas, shared_texts = [], []
    for first, second in combinations(counted.values(), 2):
        shared = sorted(first.keys() & second.keys())
        if not shared:
            continue
        with warnings.catch_warnings():
            # Two raters who gave one and the same answer throughout have no kappa: it is nan, and is left out below.
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
