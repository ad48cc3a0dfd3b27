"""Scores at a task without a model: by chance, and by always giving the most frequent answer."""

import random
from collections import Counter
from collections.abc import Sequence

from malmoi.evaluation.fewshot.metrics import Answer, Choice, Metric, metric_by_name
from malmoi.evaluation.fewshot.results import Baseline
from malmoi.evaluation.fewshot.task_files import Document, FewshotTask

CHANCE_DRAWS = 20
"""Draws whose scores are averaged where chance has no closed form."""


def baselines(task: FewshotTask, documents: Sequence[Document]) -> tuple[Baseline, ...]:
    """Return what each metric is without reading the question."""
    settings = task.settings
    rows = []
    for name in settings.metrics:
        metric = metric_by_name(name, settings.output_type, settings.bleu_tokenize)
        if settings.output_type == "loglikelihood":
            rows.append(Baseline(name, None, None))
        elif settings.output_type == "generate_until":
            rows.append(Baseline(name, _text_chance(task, documents, metric), _text_majority(task, documents, metric)))
        else:
            chance = _choice_chance(name, documents, metric)
            rows.append(Baseline(name, chance, _choice_majority(task, documents, metric)))
    return tuple(rows)


def _picked(document: Document, index: int) -> Choice:
    logprobs = tuple(0.0 if number == index else float("-inf") for number in range(len(document.choices)))
    return Choice(document.choices, logprobs, document.gold, document.value)


def _choice_chance(name: str, documents: Sequence[Document], metric: Metric) -> float:
    if name in ("acc", "acc_norm"):
        return sum(1 / len(document.choices) for document in documents) / len(documents)
    if name in ("pearson", "spearman"):
        return 0.0
    draw = random.Random(0)
    scores = [
        metric.score([_picked(document, draw.randrange(len(document.choices))) for document in documents])
        for _ in range(CHANCE_DRAWS)
    ]
    return sum(scores) / len(scores)


def _choice_majority(task: FewshotTask, documents: Sequence[Document], metric: Metric) -> float:
    [(most, _)] = Counter(example.gold for example in task.examples).most_common(1)
    return metric.score([_picked(document, min(most, len(document.choices) - 1)) for document in documents])


def _text_chance(task: FewshotTask, documents: Sequence[Document], metric: Metric) -> float:
    draw = random.Random(0)
    scores = [
        metric.score([Answer(draw.choice(task.examples).answers[0], document.answers) for document in documents])
        for _ in range(CHANCE_DRAWS)
    ]
    return sum(scores) / len(scores)


def _text_majority(task: FewshotTask, documents: Sequence[Document], metric: Metric) -> float:
    [(most, _)] = Counter(example.answers[0] for example in task.examples).most_common(1)
    return metric.score([Answer(most, document.answers) for document in documents])
