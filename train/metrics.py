"""`metrics.jsonl`: one object a line, in step order, also after a stop and a new start."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

METRICS_FILE = "metrics.jsonl"


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
    mfu: float
    """Share of the peak FLOP/s of all devices."""
    data_wait: float
    """Share of time spent waiting for data."""
    memory: float
    """Peak memory of rank 0, in MiB."""
    skipped_steps: int


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


def append_metrics(run: Path, line: StepMetrics | HeldOutMetrics) -> None:
    """Add a line to the run's metrics."""
    with (run / METRICS_FILE).open("a") as file:
        file.write(json.dumps(asdict(line)) + "\n")


def drop_metrics_after(run: Path, step: int) -> None:
    """Drop lines of steps after `step`, which are about to be done again, and a half-written last line."""
    file = run / METRICS_FILE
    if not file.is_file():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    temporary = file.with_suffix(".jsonl.writing")
    temporary.write_text("".join(kept))
    temporary.replace(file)
