"""`metrics.jsonl`: one JSON object a line, in step order, also after a resume.

Each field of a record is written under the name in its metadata, such as `train/loss`; trackers get the same names.
"""

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from malmoi.train.metrics.log_file import METRICS_FILE, append_line, replace_line

Record = TypeVar("Record", "StepMetrics", "ValMetrics", "TaskValMetrics", "EventMetrics")
COUNTERS = ("step", "tokens_seen")


def metric(name: str) -> Any:
    """A field that is logged as `name`."""
    return field(metadata={"name": name})


@dataclass(frozen=True)
class StepMetrics:
    """A logged step; speeds and fractions are over the steps since the previous record."""

    step: int
    """Optimizer steps done."""
    tokens_seen: int
    """Training tokens consumed so far."""
    loss: float = metric("train/loss")
    """Nats a token, mean over the step's global batch."""
    lr: float = metric("train/lr")
    grad_norm: float = metric("train/grad_norm")
    """Global norm before clipping."""
    skipped_steps: int = metric("train/skipped_steps")
    """Steps skipped so far because their gradient was not finite."""
    tokens_per_sec: float = metric("perf/tokens_per_sec")
    """While training, without the time of checkpoints and evaluations."""
    mfu: float = metric("perf/mfu")
    """Model FLOPs utilization: fraction of the peak FLOP/s of all devices."""
    data_wait_frac: float = metric("perf/data_wait_frac")
    """Fraction of time spent waiting for data."""
    checkpoint_frac: float = metric("perf/checkpoint_frac")
    """Fraction of time spent waiting for a checkpoint."""
    eval_frac: float = metric("perf/eval_frac")
    """Fraction of time spent on evaluation."""
    slowest_rank: int = metric("perf/slowest_rank")
    """The rank that came last to the gradient all-reduce."""
    slowest_rank_lag: float = metric("perf/slowest_rank_lag")
    """Its time until then above the mean of all ranks, as a fraction of that mean."""
    peak_mib: float = metric("mem/peak_mib")
    """Peak memory of rank 0, in MiB."""


@dataclass(frozen=True)
class ValMetrics:
    """An evaluation on the validation split."""

    step: int
    tokens_seen: int
    loss: float = metric("val/loss")
    """Nats a token."""
    ppl: float = metric("val/ppl")
    bpb: float = metric("val/bpb")
    """Bits per byte of UTF-8 text."""
    tokens: int = metric("val/tokens")
    """Tokens scored."""


@dataclass(frozen=True)
class TaskValMetrics:
    """An evaluation on the validation file of a fine-tuning run."""

    step: int
    tokens_seen: int
    loss: float = metric("val/loss")
    """Of the task alone, mean over examples: nats, or for similarity the squared error."""
    scores: dict[str, float] = metric("val/scores")  # noqa: RUF009 - returns a field
    """The task's scores by name; trackers get each as `val/NAME`."""


@dataclass(frozen=True)
class EventMetrics:
    """Something that happened after `step`."""

    step: int
    tokens_seen: int
    event: str
    """`resume` or `rollback`."""
    text: str


@dataclass(frozen=True)
class CustomMetrics:
    """Values that a hook logged by names of its own."""

    step: int
    tokens_seen: int
    values: dict[str, float]


AnyRecord = StepMetrics | ValMetrics | TaskValMetrics | EventMetrics | CustomMetrics


@dataclass(frozen=True)
class RunMetrics:
    """All records of a run so far."""

    steps: tuple[StepMetrics, ...] = ()
    vals: tuple[ValMetrics, ...] = ()
    """Of pre-training."""
    task_vals: tuple[TaskValMetrics, ...] = ()
    """Of fine-tuning."""
    events: tuple[EventMetrics, ...] = ()
    custom: tuple[CustomMetrics, ...] = ()
    unreadable: tuple[int, ...] = ()
    """Numbers of lines that are not ours, from 1, without a last line that is still being written."""

    @property
    def evaluations(self) -> tuple[ValMetrics | TaskValMetrics, ...]:
        """The evaluations, of either kind of run."""
        return (*self.vals, *self.task_vals)


def logged_name(entry: Any) -> str:
    """The name under which a dataclass field of a record is logged."""
    return str(entry.metadata.get("name", entry.name))


OWN_NAMES = frozenset(
    logged_name(entry) for kind in (StepMetrics, ValMetrics, TaskValMetrics, EventMetrics) for entry in fields(kind)
)
"""Names by which a line is recognized as one of our records, and which no other value may have."""


def as_logged(record: AnyRecord) -> dict[str, Any]:
    """The record by logged names, as a line of metrics.jsonl holds it."""
    if isinstance(record, CustomMetrics):
        return {"step": record.step, "tokens_seen": record.tokens_seen, **record.values}
    return {logged_name(entry): getattr(record, entry.name) for entry in fields(record)}


def tracked_values(record: AnyRecord) -> dict[str, float]:
    """What trackers get of a record: every number by its logged name, scores one by one, without the step itself."""
    values = {name: value for name, value in as_logged(record).items() if name != "step"}
    scores = values.pop("val/scores", {})
    return {**values, **{f"val/{name}": value for name, value in scores.items()}}


def append_metrics(run: Path, record: AnyRecord) -> None:
    """Add a line to the run's metrics.

    Raises:
        OSError: the disk does not take it; it names the file.
    """
    append_line(run / METRICS_FILE, as_logged(record))


def replace_evaluation(run: Path, record: ValMetrics | TaskValMetrics) -> None:
    """Log an evaluation in the place of that of the same step, which was done again."""
    replace_line(
        run / METRICS_FILE, as_logged(record), lambda known: "val/loss" in known and known["step"] == record.step
    )


def read_metrics(run: Path) -> RunMetrics:
    """The run's metrics, also while the run is writing them; empty where it has none yet."""
    file = run / METRICS_FILE
    steps: list[StepMetrics] = []
    vals: list[ValMetrics] = []
    task_vals: list[TaskValMetrics] = []
    events: list[EventMetrics] = []
    custom: list[CustomMetrics] = []
    unreadable: list[int] = []
    if not file.is_file():
        return RunMetrics()
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                logged = json.loads(line)
                if "val/scores" in logged:
                    task_vals.append(_record(TaskValMetrics, logged))
                elif "val/loss" in logged:
                    vals.append(_record(ValMetrics, logged))
                elif "event" in logged:
                    events.append(_record(EventMetrics, logged))
                elif "train/loss" in logged:
                    steps.append(_record(StepMetrics, logged))
                else:
                    values = {
                        name: math.nan if value is None else float(value)
                        for name, value in logged.items()
                        if name not in COUNTERS
                    }
                    custom.append(CustomMetrics(int(logged["step"]), int(logged["tokens_seen"]), values))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                if line.endswith("\n"):
                    unreadable.append(number)
    return RunMetrics(tuple(steps), tuple(vals), tuple(task_vals), tuple(events), tuple(custom), tuple(unreadable))


def _record(kind: type[Record], logged: dict[str, Any]) -> Record:
    """A line as a record; a metric that was not finite, or that another version did not log, is NaN."""
    counters = {name: int(logged[name]) for name in COUNTERS}
    known = {name: math.nan if value is None else value for name, value in logged.items()}
    values: dict[str, Any] = {
        entry.name: counters.get(entry.name, known.get(logged_name(entry), math.nan)) for entry in fields(kind)
    }
    return kind(**values)
