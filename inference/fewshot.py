"""`malmoi fewshot`: tasks put to a model with examples in the prompt, run by lm_eval."""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from configs.commands import FewshotOptions
from configs.errors import BadInput
from inference.baselines import baselines
from inference.fewshot_results import Score, ShotRun, TaskResult, check_same_model, write_result
from inference.model_folder import load_model
from inference.scorers import Answer, Choice, Continuation, Scorer, scorer
from inference.task_files import Document, FewshotTask, TaskFile, load_tasks

SPLIT = "test"
VERSIONS = ("lm_eval", "sacrebleu", "torch", "transformers")
Progress = Callable[[str], None]
"""Told what is being run."""


class DoesNotFit(BadInput):
    """A task whose prompts or answers the model's context has no room for."""


class QuietModel(HFLM):  # type: ignore[misc]  # lm_eval is untyped
    """lm_eval's model without its progress bars: a run of many tasks would print hundreds."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy text up to a stop string."""
        found: list[str] = super().generate_until(requests, disable_tqdm=True)
        return found


def open_model(folder: Path, batch: int) -> QuietModel:
    """A causal model's folder as lm_eval's model, of any architecture that `AutoModelForCausalLM` knows.

    Raises:
        BadInput: the folder holds no causal model.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    loaded = load_model(folder)
    return QuietModel(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch, backend="causal")


@dataclass(frozen=True)
class Room:
    """Whether a prompt fits a model, counted as lm_eval counts, which would cut it from the left in silence."""

    model: QuietModel
    settings: TaskFile

    def holds(self, prompt: str, document: Document) -> bool:
        """Whether the prompt and the longest answer fit together."""
        most = int(self.model.max_length)
        if self.settings.output_type == "generate_until":
            return len(self.model.tok_encode(prompt)) + self.settings.max_gen_toks <= most
        # The last token of an answer is predicted but never read, so one more fits.
        return all(
            sum(map(len, self.model._encode_pair(prompt, answer))) <= most + 1
            for answer in continuations(self.settings, document)
        )


def continuations(settings: TaskFile, document: Document) -> tuple[str, ...]:
    """The texts whose likelihood is asked for after the prompt."""
    if settings.output_type == "multiple_choice":
        return tuple(settings.target_delimiter + choice for choice in document.choices)
    return (settings.target_delimiter + document.answers[0],)


def as_example(settings: TaskFile, document: Document) -> str:
    """A prompt with its answer."""
    answer = document.choices[document.gold] if document.choices else document.answers[0]
    return f"{document.prompt}{settings.target_delimiter}{answer}"


def joined(settings: TaskFile, examples: Sequence[Document], document: Document) -> str:
    """Description, examples and question."""
    parts = [settings.description, *(as_example(settings, example) for example in examples), document.prompt]
    return settings.fewshot_delimiter.join(part for part in parts if part)


@dataclass(frozen=True)
class Prompt:
    """What a model reads before its answer."""

    text: str
    dropped: int
    """Examples taken out so that it fits."""


def build_prompt(settings: TaskFile, document: Document, examples: Sequence[Document], room: Room) -> Prompt:
    """The prompt; where it is too long, whole examples go, the first one first."""
    for dropped in range(len(examples) + 1):
        text = joined(settings, examples[dropped:], document)
        if room.holds(text, document):
            return Prompt(text, dropped)
    raise ValueError("a document that does not fit by itself was to be left out before")


def drawn_examples(task: FewshotTask, document: Document, number: int, shots: int, seed: int) -> list[Document]:
    """`shots` examples for document `number`: GPT-3 draws anew for each. The first k of a draw are the draw of k."""
    draw = random.Random(f"{seed} {number}")
    pool = [example for example in task.examples if not task.shares_examples or example != document]
    order = list(range(len(pool)))
    draw.shuffle(order)
    # The examples nearest the question are the ones that fewer shots would have shown.
    return [pool[index] for index in reversed(order[:shots])]


class ShotTask(ConfigurableTask):  # type: ignore[misc]  # lm_eval is untyped
    """One task at one number of examples, as lm_eval runs it."""

    def __init__(self, task: FewshotTask, documents: Sequence[Document], shots: int, seed: int, room: Room) -> None:
        self._source = task
        self._shots, self._seed, self._room = shots, seed, room
        self.prompts: list[Prompt] = []
        settings = task.settings
        self._scorers = {name: scorer(name, settings.output_type, settings.bleu_tokenize) for name in settings.metrics}
        super().__init__(config=_lm_eval_config(settings, documents, self._outcome_values, self._scorers, shots))
        self._documents = documents

    def build_all_requests(self, *, limit: int | None = None, rank: int = 0, world_size: int = 1, **_: Any) -> None:
        """The requests of every document; prompts are built here, where the number of a document is known."""
        self._instances = []
        for number, row in self.doc_iterator(rank=rank, limit=limit, world_size=world_size):
            document = self._documents[number]
            examples = drawn_examples(self._source, document, number, self._shots, self._seed)
            prompt = build_prompt(self._source.settings, document, examples, self._room)
            self.prompts.append(prompt)
            made = self.construct_requests(doc=row, ctx=prompt.text, metadata=(self.config.task, number, 1))
            self._instances += made if isinstance(made, list) else [made]

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> list[Instance] | Instance:
        """lm_eval's requests; a single target is set off from its prompt as choices are."""
        if self.OUTPUT_TYPE != "loglikelihood":
            return super().construct_requests(doc, ctx, **kwargs)
        target = f"{self.config.target_delimiter}{doc['target']}"
        return Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, target), idx=0, **kwargs)

    def _outcome_values(self, row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """What lm_eval is to aggregate for one document."""
        outcome: Choice | Answer | Continuation
        if self.OUTPUT_TYPE == "multiple_choice":
            outcome = Choice(tuple(row["choices"]), tuple(nats for nats, _ in results), row["gold"], row["value"])
        elif self.OUTPUT_TYPE == "loglikelihood":
            outcome = Continuation(*results[0])
        else:
            outcome = Answer(results[0].strip(), tuple(row["answers"]))
        return {name: scorer.value(outcome) for name, scorer in self._scorers.items()}


def _lm_eval_config(
    settings: TaskFile,
    documents: Sequence[Document],
    outcome_values: Callable[[Mapping[str, Any], Sequence[Any]], dict[str, Any]],
    scorers: Mapping[str, Scorer],
    shots: int,
) -> dict[str, Any]:
    """The task as lm_eval's settings, with its documents in memory."""
    rows = [
        {
            "prompt": document.prompt,
            "choices": list(document.choices),
            "gold": document.gold,
            "answers": list(document.answers),
            "target": document.answers[0] if document.answers else "",
            "value": document.value,
        }
        for document in documents
    ]
    has_choices = settings.output_type == "multiple_choice"
    config = {
        "task": settings.task,
        "custom_dataset": lambda **_: {SPLIT: datasets.Dataset.from_list(rows)},
        "test_split": SPLIT,
        "output_type": settings.output_type,
        "doc_to_text": "prompt",
        "doc_to_target": "gold" if has_choices else "target",
        "target_delimiter": settings.target_delimiter,
        "process_results": outcome_values,
        "metric_list": [
            {
                "metric": name,
                "aggregation": "mean" if scorer.aggregate is None else scorer.aggregate,
                "higher_is_better": name != "perplexity",
            }
            for name, scorer in scorers.items()
        ],
        "num_fewshot": shots,
    }
    if has_choices:
        config["doc_to_choice"] = "choices"
    if settings.output_type == "generate_until":
        config["generation_kwargs"] = {
            "until": list(settings.until),
            "max_gen_toks": settings.max_gen_toks,
            "do_sample": False,
        }
    return config


@dataclass(frozen=True)
class FittingDocuments:
    """The documents that are scored."""

    documents: tuple[Document, ...]
    left_out: int


def fitting_documents(task: FewshotTask, room: Room, limit: int | None) -> FittingDocuments:
    """The first `limit` documents, less those that the model cannot read even without examples.

    Raises:
        DoesNotFit: none is left.
    """
    most, needed = int(room.model.max_length), task.settings.max_gen_toks
    if task.settings.output_type == "generate_until" and needed >= most:
        raise DoesNotFit(
            f"task '{task.settings.task}' asks for answers of {needed} tokens, the model's context is {most}; "
            "use a model with a longer context, or a task with a smaller max_gen_toks"
        )
    wanted = task.documents[:limit]
    kept = [document for document in wanted if room.holds(joined(task.settings, (), document), document)]
    if not kept:
        raise DoesNotFit(
            f"task '{task.settings.task}': each of its {len(wanted)} prompts is longer than the model's context of "
            f"{most} tokens; use a model with a longer context, or leave this task out"
        )
    return FittingDocuments(tuple(kept), len(wanted) - len(kept))


def run_fewshot(options: FewshotOptions, progress: Progress, warn: Progress) -> Iterator[TaskResult]:
    """Run each task that fits the model, write its result into `options.out` and yield it.

    Args:
        warn: told of each task that does not fit, before the first one runs.

    Raises:
        BadInput: an option, a task file or the model is not usable, or no task fits.
    """
    _check(options)
    tasks = load_tasks(options.tasks)
    for task in tasks:
        most = len(task.examples) - task.shares_examples
        if max(options.shots) > most:
            raise BadInput(
                f"--shots {max(options.shots)}: the task '{task.settings.task}' has {most} examples to draw from; "
                f"choose {most} or less"
            )
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: cannot be made ({error.strerror}); choose another folder with --out") from error
    check_same_model(out, options.model)
    model = open_model(Path(options.model), options.batch)
    # What does not fit is told before the first hour of work and not after it.
    for task, documents in _fitting_tasks(tasks, model, options.limit, warn):
        result = run_task(task, documents, model, options, progress)
        try:
            write_result(out, result)
        except OSError as error:
            raise BadInput(f"{out}: cannot be written ({error.strerror}); choose another folder with --out") from error
        yield result


def _fitting_tasks(
    tasks: Sequence[FewshotTask], model: QuietModel, limit: int | None, warn: Progress
) -> list[tuple[FewshotTask, FittingDocuments]]:
    fitting, faults = [], []
    for task in tasks:
        try:
            fitting.append((task, fitting_documents(task, Room(model, task.settings), limit)))
        except DoesNotFit as error:
            faults.append(error)
    if not fitting:
        raise faults[0]
    for fault in faults:
        warn(f"left out: {fault}")
    return fitting


def _check(options: FewshotOptions) -> None:
    if min(options.shots) < 0 or len(set(options.shots)) < len(options.shots):
        raise BadInput(f"--shots {' '.join(map(str, options.shots))}: choose different numbers from 0 on")
    if len(set(options.seeds)) < len(options.seeds):
        raise BadInput(f"--seeds {' '.join(map(str, options.seeds))}: name each once")
    if options.limit is not None and options.limit < 1:
        raise BadInput(f"--limit {options.limit}: choose 1 or more")
    if options.batch < 1:
        raise BadInput(f"--batch {options.batch}: choose 1 or more")


def run_task(
    task: FewshotTask, fitting: FittingDocuments, model: QuietModel, options: FewshotOptions, progress: Progress
) -> TaskResult:
    """One task at every number of examples with every seed; without examples the seed changes nothing."""
    runs = []
    for shots in sorted(options.shots):
        for seed in options.seeds[:1] if shots == 0 else options.seeds:
            progress(f"{task.settings.task}, {shots} examples, seed {seed}")
            runs.append(_run_once(task, fitting.documents, model, shots, seed))
    return TaskResult(
        task=task.settings.task,
        model=options.model,
        documents=len(fitting.documents),
        left_out=fitting.left_out,
        limit=options.limit,
        baselines=baselines(task, fitting.documents),
        runs=tuple(runs),
        licence=task.settings.licence,
        versions=tuple((name, version(name)) for name in VERSIONS),
    )


def _run_once(task: FewshotTask, documents: Sequence[Document], model: QuietModel, shots: int, seed: int) -> ShotRun:
    shot_task = ShotTask(task, documents, shots, seed, Room(model, task.settings))
    name = task.settings.task
    found = evaluate(model, {"tasks": {name: shot_task}, "groups": {}}, log_samples=False)["results"][name]
    scores = []
    for metric in task.settings.metrics:
        stderr = found[f"{metric}_stderr,none"]
        scores.append(Score(metric, float(found[f"{metric},none"]), None if stderr == "N/A" else float(stderr)))
    dropped = [prompt.dropped for prompt in shot_task.prompts]
    return ShotRun(shots, seed, tuple(scores), sum(map(bool, dropped)), sum(dropped))


def results_as_dict(results: Sequence[TaskResult]) -> dict[str, Any]:
    """For JSON."""
    return {"model": results[0].model if results else "", "tasks": [result.as_dict() for result in results]}
