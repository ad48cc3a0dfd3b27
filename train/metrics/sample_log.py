"""`samples.jsonl`: the sample of each evaluation."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from malmoi.atomic_io import write_atomic

SAMPLES_FILE = "samples.jsonl"


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
    _keep(run, lambda step: step != sample.step)
    with (run / SAMPLES_FILE).open("a", encoding="utf-8") as file:
        file.write(_line(sample))


def drop_eval_samples_after(run: Path, step: int) -> None:
    """Drop samples of steps after `step`, which will be done again, and a half-written last line."""
    _keep(run, lambda known: known <= step)


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


def _keep(run: Path, wanted: Callable[[int], bool]) -> None:
    file = run / SAMPLES_FILE
    if not file.is_file():
        return
    kept = "".join(_line(sample) for sample in read_eval_samples(run) if wanted(sample.step))
    if kept != file.read_text(encoding="utf-8", errors="replace"):
        write_atomic(file, kept.encode())


def _line(sample: EvalSample) -> str:
    return json.dumps(asdict(sample), ensure_ascii=False) + "\n"
