"""`samples.jsonl`: what the model makes of the run's prompt at each look, one object a line. Needs no torch."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.files import write_whole

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class LookSample:
    """A sample of the model as it stood after `step`."""

    step: int
    tokens: int
    """Tokens trained on so far."""
    prompt: str
    text: str
    """The prompt included."""


def write_sample(run: Path, sample: LookSample) -> None:
    """Add a sample, in place of one of the same step: a run that was killed may look twice at it."""
    _keep(run, lambda step: step != sample.step)
    with (run / SAMPLES_FILE).open("a", encoding="utf-8") as file:
        file.write(_line(sample))


def drop_samples_after(run: Path, step: int) -> None:
    """Drop samples of steps after `step`, which are about to be done again, and a half-written last line."""
    _keep(run, lambda known: known <= step)


def read_samples(run: Path) -> tuple[LookSample, ...]:
    """The run's samples in order, also while the run is writing them; lines that are none of ours are left out."""
    file = run / SAMPLES_FILE
    if not file.is_file():
        return ()
    samples = []
    # Not splitlines(): it splits at U+2028 and its like too, which JSON writes as they are.
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
            samples.append(
                LookSample(int(record["step"]), int(record["tokens"]), str(record["prompt"]), str(record["text"]))
            )
        except (ValueError, TypeError, KeyError):
            continue
    return tuple(samples)


def _keep(run: Path, wanted: Callable[[int], bool]) -> None:
    file = run / SAMPLES_FILE
    if not file.is_file():
        return
    kept = "".join(_line(sample) for sample in read_samples(run) if wanted(sample.step))
    if kept != file.read_text(encoding="utf-8", errors="replace"):
        write_whole(file, kept.encode())


def _line(sample: LookSample) -> str:
    return json.dumps(asdict(sample), ensure_ascii=False) + "\n"
