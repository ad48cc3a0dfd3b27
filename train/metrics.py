"""`metrics.jsonl`: one object a line, in step order, also after a stop and a new start."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from data_prep.files import write_whole

METRICS_FILE = "metrics.jsonl"
Line = TypeVar("Line")


@dataclass(frozen=True)
class StepMetrics:
    """A logged step; rates and shares are over the steps since the line before."""

    step: int
    """Updates done."""
    tokens: int
    """Tokens trained on so far."""
    loss: float
    """Nats a token, mean over the step's global batch."""
    lr: float
    grad_norm: float
    """Global norm before clipping."""
    tokens_per_second: float
    """While training, without the time of saving and evaluating."""
    mfu: float
    """Share of the peak FLOP/s of all devices."""
    data_wait: float
    """Share of time spent waiting for data."""
    saving: float
    """Share of time spent waiting for a checkpoint."""
    evaluating: float
    """Share of time spent on the held-out part."""
    memory: float
    """Peak memory of rank 0, in MiB."""
    skipped_steps: int
    slowest_rank: int
    """The rank that came last to the exchange of gradients."""
    slowest_lag: float
    """Its time until then above the mean of all ranks, as a share of that mean."""


@dataclass(frozen=True)
class HeldOutMetrics:
    """A look at the held-out part."""

    step: int
    tokens: int
    held_out_loss: float
    perplexity: float
    bits_per_byte: float
    held_out_tokens: int
    """Tokens that were scored."""


@dataclass(frozen=True)
class ValidationMetrics:
    """A look at the validation file of a fine-tuning."""

    step: int
    tokens: int
    held_out_loss: float
    """Of the task alone, a mean over examples: nats, or for similarity the squared error."""
    scores: dict[str, float]
    """The task's scores by name."""


@dataclass(frozen=True)
class EventMetrics:
    """Something that happened after `step`."""

    step: int
    tokens: int
    event: str
    """`restart` or `rollback`."""
    text: str


@dataclass(frozen=True)
class RunMetrics:
    """All that a run has logged so far."""

    steps: tuple[StepMetrics, ...]
    held_out: tuple[HeldOutMetrics, ...]
    """Of pre-training."""
    validation: tuple[ValidationMetrics, ...]
    """Of a fine-tuning."""
    events: tuple[EventMetrics, ...]
    unreadable: tuple[int, ...]
    """Numbers of lines that are none of ours, from 1; a last line that is still being written is not among them."""

    @property
    def looks(self) -> tuple[HeldOutMetrics | ValidationMetrics, ...]:
        """At data that are not trained on, whichever kind of run it is."""
        return (*self.held_out, *self.validation)


def append_metrics(run: Path, line: StepMetrics | HeldOutMetrics | ValidationMetrics | EventMetrics) -> None:
    """Add a line to the run's metrics.

    Raises:
        OSError: the disk does not take it; it names the file.
    """
    path = run / METRICS_FILE
    try:
        with path.open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def drop_metrics_after(run: Path, step: int) -> None:
    """Drop lines of steps after `step`, which are about to be done again, and a half-written last line."""
    _keep(run, lambda record: bool(record["step"] <= step))


def drop_look_at(run: Path, step: int) -> None:
    """Drop the line of a look at held-out data at `step`, which was taken again."""
    _keep(run, lambda record: "held_out_loss" not in record or record["step"] != step)


def _keep(run: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    file = run / METRICS_FILE
    if not file.is_file():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if is_kept(record):
            kept.append(line + "\n")
    write_whole(file, "".join(kept).encode())


def read_metrics(run: Path) -> RunMetrics:
    """The run's metrics, also while the run is writing them; empty where it has none yet."""
    file = run / METRICS_FILE
    steps: list[StepMetrics] = []
    held_out: list[HeldOutMetrics] = []
    validation: list[ValidationMetrics] = []
    events: list[EventMetrics] = []
    unreadable: list[int] = []
    if not file.is_file():
        return RunMetrics((), (), (), (), ())
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if "scores" in record:
                    validation.append(_line(ValidationMetrics, record))
                elif "held_out_loss" in record:
                    held_out.append(_line(HeldOutMetrics, record))
                elif "event" in record:
                    events.append(_line(EventMetrics, record))
                else:
                    steps.append(_line(StepMetrics, record))
            except (ValueError, TypeError, KeyError):
                if line.endswith("\n"):
                    unreadable.append(number)
    return RunMetrics(tuple(steps), tuple(held_out), tuple(validation), tuple(events), tuple(unreadable))


def _line(kind: type[Line], record: dict[str, Any]) -> Line:
    """`record` as a line of `kind`; what a run of another version did not log is not a number."""
    counters = {name: int(record[name]) for name in ("step", "tokens")}
    # mypy does not know that every `kind` here is a dataclass.
    names = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: counters.get(name, record.get(name, math.nan)) for name in names})
