"""Evaluate a model on tasks with examples in the prompt, by lm_eval: `malmoi fewshot`."""

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

from malmoi.configs.commands import FewshotOptions, with_overrides
from malmoi.errors import UserError
from malmoi.evaluation.fewshot.baselines import baselines
from malmoi.evaluation.fewshot.metrics import Answer, Choice, Continuation, Metric, metric_by_name
from malmoi.evaluation.fewshot.results import (
    Sample,
    Score,
    ShotRun,
    TaskResult,
    check_same_model,
    samples_file,
    write_result,
    write_samples,
)
from malmoi.evaluation.fewshot.task_files import Document, FewshotTask, TaskFile, load_tasks
from malmoi.inference.model_folder import LoadedModel, as_loaded

SPLIT = "test"
VERSIONS = ("lm_eval", "sacrebleu", "torch", "transformers")
Report = Callable[[str], None]
"""Takes a line on what is being run, or a warning."""

log = logging.getLogger(__name__)


def fewshot(
    model: LoadedModel | str | Path,
    tasks: str | Sequence[str],
    *,
    shots: int | Sequence[int] = (0, 1, 5),
    seeds: int | Sequence[int] = 0,
    limit: int | None = None,
    batch_size: int = 8,
    out: str | Path | None = None,
    log_samples: bool = False,
) -> list[TaskResult]:
    """Evaluate a model on tasks with none, one or several examples in the prompt.

        [result] = malmoi.fewshot("runs/demo/model", "topic", shots=(0, 5), limit=100)
        print(result.curve("acc"))

    Args:
        model: folder of any causal language model, or what `load_model` returned.
        tasks: names of tasks or groups, patterns such as `arithmetic_*`, `all`, or paths of task files (.yaml).
        shots: numbers of examples in the prompt.
        seeds: seeds of the choice of examples; several give a mean and its standard error.
        limit: documents a task at most; none: all.
        batch_size: prompts in a batch.
        out: folder that gets one JSON file a task; none: nothing is written.
        log_samples: also write each prompt with the answer and log-likelihoods to TASK.samples.jsonl in `out`.

    Returns:
        The result of each task that fits the model's context, in order; others are logged as warnings.

    Raises:
        UserError: an argument, a task file or the model cannot be used, or no task fits.
    """
    loaded = as_loaded(model)
    given = {
        "model": str(loaded.folder or ""),
        "tasks": (tasks,) if isinstance(tasks, str) else tuple(tasks),
        "shots": (shots,) if isinstance(shots, int) else tuple(shots),
        "seeds": (seeds,) if isinstance(seeds, int) else tuple(seeds),
        "limit": limit,
        "batch_size": batch_size,
        "out": str(out or ""),
        "log_samples": log_samples,
    }
    return list(run_fewshot(with_overrides(FewshotOptions(), given), log.info, log.warning, loaded))


class DoesNotFit(UserError):
    """A task whose prompts or answers do not fit the model's context."""


class QuietModel(HFLM):  # type: ignore[misc]  # lm_eval is untyped
    """lm_eval's model without its progress bars: a run of many tasks would print hundreds."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return greedy text up to a stop string, for each request."""
        found: list[str] = super().generate_until(requests, disable_tqdm=True)
        return found


def open_model(model: LoadedModel | Path, batch_size: int) -> QuietModel:
    """Return a model or its folder as lm_eval's model, of any architecture that `AutoModelForCausalLM` knows.

    Raises:
        UserError: the folder holds no causal language model.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    loaded = as_loaded(model)
    return QuietModel(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size, backend="causal")


@dataclass(frozen=True)
class ContextCheck:
    """Whether a prompt fits a model, counted as lm_eval does, which would truncate it from the left in silence."""

    model: QuietModel
    settings: TaskFile

    def fits(self, prompt: str, document: Document) -> bool:
        """Return whether the prompt and the longest answer fit together."""
        most = int(self.model.max_length)
        if self.settings.output_type == "generate_until":
            return len(self.model.tok_encode(prompt)) + self.settings.max_gen_toks <= most
        # The last token of an answer is predicted but never read, so one more fits.
        return all(
            sum(map(len, self.model._encode_pair(prompt, answer))) <= most + 1
            for answer in continuations(self.settings, document)
        )


def continuations(settings: TaskFile, document: Document) -> tuple[str, ...]:
    """Return the texts whose likelihood after the prompt is computed."""
    if settings.output_type == "multiple_choice":
        return tuple(settings.target_delimiter + choice for choice in document.choices)
    return (settings.target_delimiter + document.answers[0],)


def example_text(settings: TaskFile, document: Document) -> str:
    """Return a prompt with its answer."""
    answer = document.choices[document.gold] if document.choices else document.answers[0]
    return f"{document.prompt}{settings.target_delimiter}{answer}"


def prompt_text(settings: TaskFile, examples: Sequence[Document], document: Document) -> str:
    """Return description, examples and question."""
    parts = [settings.description, *(example_text(settings, example) for example in examples), document.prompt]
    return settings.fewshot_delimiter.join(part for part in parts if part)


@dataclass(frozen=True)
class Prompt:
    """The text that a model reads before its answer."""

    text: str
    dropped: int
    """Examples left out so that it fits."""


def build_prompt(settings: TaskFile, document: Document, examples: Sequence[Document], context: ContextCheck) -> Prompt:
    """Return the prompt; while it is too long, the first of its examples is left out."""
    for dropped in range(len(examples) + 1):
        text = prompt_text(settings, examples[dropped:], document)
        if context.fits(text, document):
            return Prompt(text, dropped)
    raise ValueError("a document that does not fit without examples should have been left out before")


def choose_examples(task: FewshotTask, document: Document, number: int, shots: int, seed: int) -> list[Document]:
    """Return `shots` examples for document `number`, chosen anew for each as in GPT-3.

    With fewer shots and the same seed, a document gets the last ones of the same examples.
    """
    draw = random.Random(f"{seed} {number}")
    pool = [example for example in task.examples if not task.shares_examples or example != document]
    order = list(range(len(pool)))
    draw.shuffle(order)
    return [pool[index] for index in reversed(order[:shots])]


class ShotTask(ConfigurableTask):  # type: ignore[misc]  # lm_eval is untyped
    """One task at one number of examples, as lm_eval runs it."""

    def __init__(
        self, task: FewshotTask, documents: Sequence[Document], shots: int, seed: int, context: ContextCheck
    ) -> None:
        self._source = task
        self._shots, self._seed, self._context = shots, seed, context
        self.prompts: list[Prompt] = []
        self.samples: list[Sample] = []
        settings = task.settings
        self._metrics = {
            name: metric_by_name(name, settings.output_type, settings.bleu_tokenize) for name in settings.metrics
        }
        super().__init__(config=_lm_eval_config(settings, documents, self._outcome_values, self._metrics, shots))
        self._documents = documents

    def build_all_requests(self, *, limit: int | None = None, rank: int = 0, world_size: int = 1, **_: Any) -> None:
        """Build the requests of every document, and its prompt, here where the document's number is known."""
        self._instances = []
        for number, row in self.doc_iterator(rank=rank, limit=limit, world_size=world_size):
            document = self._documents[number]
            examples = choose_examples(self._source, document, number, self._shots, self._seed)
            prompt = build_prompt(self._source.settings, document, examples, self._context)
            self.prompts.append(prompt)
            requests = self.construct_requests(doc=row, ctx=prompt.text, metadata=(self.config.task, number, 1))
            self._instances += requests if isinstance(requests, list) else [requests]

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> list[Instance] | Instance:
        """Return lm_eval's requests; a single target is separated from its prompt as choices are."""
        if self.OUTPUT_TYPE != "loglikelihood":
            return super().construct_requests(doc, ctx, **kwargs)
        target = f"{self.config.target_delimiter}{doc['target']}"
        return Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, target), idx=0, **kwargs)

    def _outcome_values(self, row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """Return what lm_eval aggregates for one document, by metric; it asks in the order of the documents."""
        outcome: Choice | Answer | Continuation
        if self.OUTPUT_TYPE == "multiple_choice":
            outcome = Choice(tuple(row["choices"]), tuple(logprob for logprob, _ in results), row["gold"], row["value"])
        elif self.OUTPUT_TYPE == "loglikelihood":
            outcome = Continuation(*results[0])
        else:
            outcome = Answer(results[0].strip(), tuple(row["answers"]))
        values = {name: metric.value(outcome) for name, metric in self._metrics.items()}
        self.samples.append(self._sample(row, results, values))
        return values

    def _sample(self, row: Mapping[str, Any], results: Sequence[Any], values: Mapping[str, Any]) -> Sample:
        number = len(self.samples)
        right, answer = tuple(row["answers"]), None
        choices: tuple[str, ...] = ()
        logprobs: tuple[float, ...] = ()
        if self.OUTPUT_TYPE == "generate_until":
            answer = results[0].strip()
        else:
            choices = tuple(row["choices"]) or (row["target"],)
            logprobs = tuple(float(logprob) for logprob, _ in results)
        if self.OUTPUT_TYPE == "multiple_choice":
            right, answer = (choices[row["gold"]],), choices[max(range(len(choices)), key=logprobs.__getitem__)]
        scores = {name: float(values[name]) for name, metric in self._metrics.items() if metric.aggregate is None}
        prompt = self.prompts[number].text
        return Sample(self._shots, self._seed, number, prompt, right, answer, choices, logprobs, scores)


def _lm_eval_config(
    settings: TaskFile,
    documents: Sequence[Document],
    outcome_values: Callable[[Mapping[str, Any], Sequence[Any]], dict[str, Any]],
    metrics: Mapping[str, Metric],
    shots: int,
) -> dict[str, Any]:
    """Return the task as an lm_eval configuration, with its documents in memory."""
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
                "aggregation": "mean" if metric.aggregate is None else metric.aggregate,
                "higher_is_better": name != "perplexity",
            }
            for name, metric in metrics.items()
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
    """The documents of a task that fit the model."""

    documents: tuple[Document, ...]
    left_out: int


def fitting_documents(task: FewshotTask, context: ContextCheck, limit: int | None) -> FittingDocuments:
    """Return the first `limit` documents without those that exceed the context even without examples.

    Raises:
        DoesNotFit: none is left.
    """
    most, needed = int(context.model.max_length), task.settings.max_gen_toks
    if task.settings.output_type == "generate_until" and needed >= most:
        raise DoesNotFit(
            f"task '{task.settings.task}' needs answers of {needed} tokens, and the model's context is {most}; "
            "use a model with a longer context, or a task with a smaller max_gen_toks"
        )
    wanted = task.documents[:limit]
    kept = [document for document in wanted if context.fits(prompt_text(task.settings, (), document), document)]
    if not kept:
        raise DoesNotFit(
            f"task '{task.settings.task}': each of its {len(wanted)} prompts is longer than the model's context of "
            f"{most} tokens; use a model with a longer context, or leave this task out"
        )
    return FittingDocuments(tuple(kept), len(wanted) - len(kept))


def run_fewshot(
    options: FewshotOptions, progress: Report, warn: Report, loaded: LoadedModel | None = None
) -> Iterator[TaskResult]:
    """Run each task that fits the model, write its result into `options.out` if that is set, and yield it.

    Args:
        progress: gets what is being run.
        warn: gets each task that does not fit, before the first one runs.
        loaded: the model of `options.model`, where it is in memory already.

    Raises:
        UserError: an option, a task file or the model cannot be used, or no task fits.
    """
    for name, numbers in (("shots", options.shots), ("seeds", options.seeds)):
        if not numbers or len(set(numbers)) < len(numbers):
            raise UserError(f"{name} {' '.join(map(str, numbers))}: give one or more, each once")
    tasks = load_tasks(options.tasks)
    for task in tasks:
        most = len(task.examples) - task.shares_examples
        if max(options.shots) > most:
            raise UserError(
                f"shots {max(options.shots)}: the task '{task.settings.task}' has {most} examples to choose from; "
                f"choose {most} or less"
            )
    out = Path(options.out) if options.out else None
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made ({error.strerror}); choose another folder with --out") from error
        check_same_model(out, options.model)
    model = open_model(loaded or Path(options.model), options.batch_size)
    # What does not fit is reported before the first hour of work and not after it.
    for task, documents in _fitting_tasks(tasks, model, options.limit, warn):
        result, samples = run_task(task, documents, model, options, progress)
        if out is not None:
            try:
                if options.log_samples:
                    write_samples(out, result.task, samples)
                else:
                    # Those of an earlier call are not of this result.
                    samples_file(out, result.task).unlink(missing_ok=True)
                write_result(out, result)
            except OSError as error:
                raise UserError(
                    f"{out}: cannot be written ({error.strerror}); choose another folder with --out"
                ) from error
        yield result


def _fitting_tasks(
    tasks: Sequence[FewshotTask], model: QuietModel, limit: int | None, warn: Report
) -> list[tuple[FewshotTask, FittingDocuments]]:
    fitting, misfits = [], []
    for task in tasks:
        try:
            fitting.append((task, fitting_documents(task, ContextCheck(model, task.settings), limit)))
        except DoesNotFit as error:
            misfits.append(error)
    if not fitting:
        raise misfits[0]
    for misfit in misfits:
        warn(f"left out: {misfit}")
    return fitting


def run_task(
    task: FewshotTask, fitting: FittingDocuments, model: QuietModel, options: FewshotOptions, progress: Report
) -> tuple[TaskResult, list[Sample]]:
    """Run one task at every number of examples with every seed; without examples the seed has no effect."""
    runs: list[ShotRun] = []
    samples: list[Sample] = []
    for shots in sorted(options.shots):
        for seed in options.seeds[:1] if shots == 0 else options.seeds:
            progress(f"{task.settings.task}, {shots} examples, seed {seed}")
            run, answered = _run_once(task, fitting.documents, model, shots, seed)
            runs.append(run)
            # They may be as large as the data times the numbers of examples.
            samples += answered if options.log_samples else []
    result = TaskResult(
        task=task.settings.task,
        model=options.model,
        documents=len(fitting.documents),
        left_out=fitting.left_out,
        limit=options.limit,
        baselines=baselines(task, fitting.documents),
        runs=tuple(runs),
        license=task.settings.license,
        versions=tuple((name, version(name)) for name in VERSIONS),
    )
    return result, samples


def _run_once(
    task: FewshotTask, documents: Sequence[Document], model: QuietModel, shots: int, seed: int
) -> tuple[ShotRun, list[Sample]]:
    shot_task = ShotTask(task, documents, shots, seed, ContextCheck(model, task.settings))
    name = task.settings.task
    found = evaluate(model, {"tasks": {name: shot_task}, "groups": {}}, log_samples=False)["results"][name]
    scores = []
    for metric in task.settings.metrics:
        stderr = found[f"{metric}_stderr,none"]
        scores.append(Score(metric, float(found[f"{metric},none"]), None if stderr == "N/A" else float(stderr)))
    dropped = [prompt.dropped for prompt in shot_task.prompts]
    return ShotRun(shots, seed, tuple(scores), sum(map(bool, dropped)), sum(dropped)), shot_task.samples


def results_as_dict(results: Sequence[TaskResult]) -> dict[str, Any]:
    """Return all results for JSON."""
    return {"model": results[0].model if results else "", "tasks": [result.as_dict() for result in results]}
