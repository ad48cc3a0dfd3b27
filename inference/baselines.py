"""What one scores at a task without a model: by chance, and by always giving the most frequent answer."""

import random
from collections import Counter
from collections.abc import Sequence

from inference.fewshot_results import Baseline
from inference.scorers import Answer, Choice, Scorer, scorer
from inference.task_files import Document, FewshotTask

CHANCE_DRAWS = 20
"""Draws whose scores are averaged where chance has no closed form."""


def baselines(task: FewshotTask, documents: Sequence[Document]) -> tuple[Baseline, ...]:
    """What one scores without reading the question."""
    settings = task.settings
    made = []
    for name in settings.metrics:
        measure = scorer(name, settings.output_type, settings.bleu_tokenize)
        if settings.output_type == "loglikelihood":
            made.append(Baseline(name, None, None))
        elif settings.output_type == "generate_until":
            made.append(
                Baseline(name, _text_chance(task, documents, measure), _text_majority(task, documents, measure))
            )
        else:
            made.append(
                Baseline(name, _choice_chance(name, documents, measure), _choice_majority(task, documents, measure))
            )
    return tuple(made)


def _picked(document: Document, index: int) -> Choice:
    nats = tuple(0.0 if number == index else float("-inf") for number in range(len(document.choices)))
    return Choice(document.choices, nats, document.gold, document.value)


def _choice_chance(name: str, documents: Sequence[Document], measure: Scorer) -> float:
    if name in ("acc", "acc_norm"):
        return sum(1 / len(document.choices) for document in documents) / len(documents)
    if name in ("pearson", "spearman"):
        return 0.0
    draw = random.Random(0)
    scores = [
        measure.score([_picked(document, draw.randrange(len(document.choices))) for document in documents])
        for _ in range(CHANCE_DRAWS)
    ]
    return sum(scores) / len(scores)


def _choice_majority(task: FewshotTask, documents: Sequence[Document], measure: Scorer) -> float:
    [(most, _)] = Counter(example.gold for example in task.examples).most_common(1)
    return measure.score([_picked(document, min(most, len(document.choices) - 1)) for document in documents])


def _text_chance(task: FewshotTask, documents: Sequence[Document], measure: Scorer) -> float:
    draw = random.Random(0)
    scores = [
        measure.score([Answer(draw.choice(task.examples).answers[0], document.answers) for document in documents])
        for _ in range(CHANCE_DRAWS)
    ]
    return sum(scores) / len(scores)


def _text_majority(task: FewshotTask, documents: Sequence[Document], measure: Scorer) -> float:
    [(most, _)] = Counter(example.answers[0] for example in task.examples).most_common(1)
    return measure.score([Answer(most, document.answers) for document in documents])
