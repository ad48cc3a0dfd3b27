"""`samples.jsonl`: the sample of each evaluation."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from malmoi.train.metrics.log_file import SAMPLES_FILE, replace_line


@dataclass(frozen=True)
class EvalSample:
    """A sample of the model after `step`."""

    step: int
    tokens_seen: int
    """Training tokens consumed so far."""
    prompt: str
    text: str
    """The prompt included."""


def write_eval_sample(run: Path, sample: EvalSample) -> None:
    """Add a sample, replacing one of the same step: a run that was killed may evaluate it twice."""
    replace_line(run / SAMPLES_FILE, asdict(sample), lambda known: known["step"] == sample.step)


def read_eval_samples(run: Path) -> tuple[EvalSample, ...]:
    """The run's samples in order, also while the run is writing them; other lines are left out."""
    file = run / SAMPLES_FILE
    if not file.is_file():
        return ()
    samples = []
    # Not splitlines(): it splits at U+2028 and its like too, which JSON writes as they are.
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
            samples.append(
                EvalSample(int(record["step"]), int(record["tokens_seen"]), str(record["prompt"]), str(record["text"]))
            )
        except (ValueError, TypeError, KeyError):
            continue
    return tuple(samples)
