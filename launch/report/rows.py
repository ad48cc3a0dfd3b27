"""Rows of the answers to a file, for a report: the worst ones, and some at random."""

import heapq
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from malmoi.errors import UserError
from malmoi.evaluation.fewshot.results import Sample, TaskResult, read_samples, samples_file
from malmoi.launch.report.runs import FinetuneRun
from malmoi.train.finetune_result import FileScores, PredictionRecord, predictions_file, read_predictions

SHOWN = 10
"""Rows of each kind."""
SEED = 42
"""Of the random rows."""
MAX_CHARACTERS = 400
"""Of a text; of a longer one beginning and end are shown."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class ShownRow:
    """One row of the page."""

    place: str
    texts: tuple[str, ...]
    """Cut to about `MAX_CHARACTERS` each."""
    label: str
    answer: str
    measure: str
    """How sure or how wrong the answer is, in words."""
    is_wrong: bool


@dataclass(frozen=True)
class ShownRows:
    """What the page shows of the answers to a file or task."""

    title: str
    worst: tuple[ShownRow, ...]
    worst_caption: str
    sample: tuple[ShownRow, ...]
    total: int
    """Rows that there are."""
    note: str = ""
    """Why there are none."""


def cut_text(text: str, most: int = MAX_CHARACTERS) -> str:
    """Return a text, of a longer one two thirds of `most` characters of its beginning and a third of its end."""
    if len(text) <= most:
        return text
    end = most // 3
    begin = most - end
    return f"{text[:begin]} […{len(text) - begin - end:,} characters…] {text[-end:]}"


def prediction_rows(run: FinetuneRun) -> list[ShownRows]:
    """Return what is shown of each file that a run's model was scored on; nothing where no answers are there."""
    if run.result is None:
        return []
    kind, shown = run.settings.task.kind, []
    for part in run.result.files:
        file = predictions_file(run.folder, part.part)
        if not file.is_file():
            continue
        title = f"{part.part} file"
        try:
            shown.append(_rows_of_file(title, file, part, kind, run.result.classes))
        except UserError as error:
            shown.append(ShownRows(title, (), "", (), 0, str(error)))
    return shown


def _rows_of_file(title: str, file: Path, part: FileScores, kind: str, classes: Sequence[str]) -> ShownRows:
    is_number = kind == "similarity"

    def badness(record: PredictionRecord) -> float | None:
        """The distance to the right number, or the probability of a wrong answer; none for a right one."""
        if is_number:
            return _distance(record)
        return None if record.predicted == record.label else max(_probabilities(record, kind))

    worst, sample = _worst_and_sample(read_predictions(file), badness, part.examples)

    def shown(record: PredictionRecord) -> ShownRow:
        texts = tuple(map(cut_text, record.texts))
        if is_number:
            numbers = (f"{float(record.label):.3g}", f"{float(record.predicted):.3g}")
            return ShownRow(record.place, texts, *numbers, f"off by {_distance(record):.3g}", False)
        probabilities = _probabilities(record, kind)
        right = classes.index(str(record.label))
        measure = f"probability {max(probabilities):.3f}"
        is_wrong = record.predicted != record.label
        measure += f", of the label {probabilities[right]:.3f}" if is_wrong else ""
        return ShownRow(record.place, texts, str(record.label), str(record.predicted), measure, is_wrong)

    caption = "Farthest from their label first." if is_number else "Wrong answers, the most confident first."
    return ShownRows(title, tuple(map(shown, worst)), caption, tuple(map(shown, sample)), part.examples)


def _distance(record: PredictionRecord) -> float:
    return abs(float(record.predicted) - float(record.label))


def _probabilities(record: PredictionRecord, kind: str) -> list[float]:
    if kind != "multiple_choice":
        return list(record.outputs)
    highest = max(record.outputs)
    shifted = [math.exp(output - highest) for output in record.outputs]
    return [each / sum(shifted) for each in shifted]


def _worst_and_sample(
    records: Iterable[Item], badness: Callable[[Item], float | None], total: int
) -> tuple[list[Item], list[Item]]:
    """Return the records of highest badness, the first of equal ones first, and some of all at random in their order.

    Memory is that of the records returned, however many there are.
    """
    chosen = set(random.Random(SEED).sample(range(total), min(SHOWN, total)))
    sample: list[Item] = []
    worst: list[tuple[float, int, Item]] = []
    for number, record in enumerate(records):
        if number in chosen:
            sample.append(record)
        bad = badness(record)
        if bad is not None and math.isfinite(bad):
            push = heapq.heappush if len(worst) < SHOWN else heapq.heappushpop
            push(worst, (bad, -number, record))
    return [record for _, _, record in sorted(worst, key=lambda each: each[:2], reverse=True)], sample


def fewshot_rows(folder: Path, result: TaskResult, label: str = "") -> ShownRows | None:
    """Return what is shown of a task's logged samples, of the most examples in the prompt; none where none are logged.

    Args:
        label: of the model, where there are several.
    """
    if not samples_file(folder, result.task).is_file():
        return None
    shots = max(run.shots for run in result.runs)
    seed = min(run.seed for run in result.runs if run.shots == shots)
    examples = f"{shots} example{'' if shots == 1 else 's'}"
    title = f"{label + ': ' if label else ''}{result.task}, {examples}" + (f", seed {seed}" if shots else "")
    try:
        samples = [each for each in read_samples(folder, result.task) if (each.shots, each.seed) == (shots, seed)]
    except UserError as error:
        return ShownRows(title, (), "", (), 0, str(error))
    worst, sample = _worst_and_sample(samples, _sample_badness, len(samples))
    is_choice = any(len(each.choices) > 1 for each in samples)
    is_written = any(not each.choices for each in samples)
    caption = "Wrong answers, those farthest above the right one in log-likelihood first."
    if is_written:
        caption = "Answers of the lowest score first."
    elif not is_choice:
        caption = "Targets of the lowest log-likelihood first."
    worst_rows, random_rows = (tuple(map(_shown_sample, each)) for each in (worst, sample))
    return ShownRows(title, worst_rows, caption, random_rows, len(samples))


def _sample_badness(sample: Sample) -> float | None:
    if len(sample.choices) > 1:
        return _margin(sample) if _is_wrong(sample) else None
    if sample.choices:
        return -sample.loglikelihoods[0]
    score = next(iter(sample.scores.values()), None)
    return None if score is None or score >= 1 else -score


def _margin(sample: Sample) -> float:
    """By how much the answer is likelier than the right one, in nats."""
    likelihoods = dict(zip(sample.choices, sample.loglikelihoods, strict=True))
    right = max((likelihoods[text] for text in sample.right if text in likelihoods), default=math.nan)
    return max(sample.loglikelihoods) - right


def _is_wrong(sample: Sample) -> bool:
    return sample.answer not in sample.right


def _shown_sample(sample: Sample) -> ShownRow:
    place, right = f"document {sample.document:,}", cut_text(" / ".join(sample.right))
    # The question is at the end of a prompt.
    prompt = _prompt_end(sample.prompt)
    scores = [f"{name} {value:.3g}" for name, value in sample.scores.items()]
    if len(sample.choices) > 1:
        measure = f"{_margin(sample):.2f} nats above the right one" if _is_wrong(sample) else "right"
        return ShownRow(place, (prompt,), right, cut_text(sample.answer or ""), measure, _is_wrong(sample))
    if sample.choices:
        target, score = sample.choices[0], f"log-likelihood {sample.loglikelihoods[0]:.2f}"
        return ShownRow(place, (prompt,), cut_text(target), "", ", ".join([score, *scores]), False)
    is_wrong = any(value < 1 for value in sample.scores.values())
    return ShownRow(place, (prompt,), right, cut_text(sample.answer or ""), ", ".join(scores), is_wrong)


def _prompt_end(prompt: str) -> str:
    """Return a prompt's end, where its question is."""
    if len(prompt) <= MAX_CHARACTERS:
        return prompt
    return f"[…{len(prompt) - MAX_CHARACTERS:,} characters…] {prompt[-MAX_CHARACTERS:]}"
