"""Fine-tuning: a pre-trained model and labeled examples to a classifier, by the trainer of pre-training."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from malmoi.checked_json import DamagedFileError
from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.model import ModelSettings
from malmoi.configs.outputs import EvalSettings
from malmoi.configs.parser import check_settings
from malmoi.console import table_console
from malmoi.errors import EXIT_DONE, EXIT_STOPPED, RunFailed, UserError, require_options
from malmoi.evaluation.calibration import calibration
from malmoi.evaluation.label_baselines import fit_baselines
from malmoi.evaluation.label_metrics import Estimate, Predictions, class_scores, confusion_counts, label_metrics
from malmoi.inference.model_folder import quiet_transformers
from malmoi.plugins import load_plugins
from malmoi.ranks import counted_ranks, is_main_rank
from malmoi.registry import registry_entry
from malmoi.train.backends import BACKENDS
from malmoi.train.backends.start import start_ranks
from malmoi.train.builder import Trainee, build_trainer, built_model, run_trainer
from malmoi.train.checkpoint.storage import open_storage
from malmoi.train.data.labeled import Examples, ExampleTokenizer, classes_of, encoded, example_tokenizer
from malmoi.train.data.labeled_rows import Row, read_rows, require_rows
from malmoi.train.data.sample_order import planned_steps
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.distributed.rank_zero import while_others_wait
from malmoi.train.distributed.rendezvous import met_ranks
from malmoi.train.distributed.stop_consensus import StopRequest, stop_ends_setup
from malmoi.train.export import place_model_folder
from malmoi.train.exported_classifier import exported_outputs, probabilities
from malmoi.train.finetune_result import (
    BaselineRecord,
    ClassRecord,
    FileScores,
    FinetuneResult,
    PredictionRecord,
    ScoreRecord,
    finished_finetuning,
    scores_table,
    write_finetuning,
    write_predictions,
)
from malmoi.train.metrics.trackers import require_trackers
from malmoi.train.models import MODELS, ClassifierSpec, ModelSpec, SpecialTokenIds
from malmoi.train.models.hf_folder import hf_config
from malmoi.train.models.spec import padded_vocabulary
from malmoi.train.run_dir import (
    FINETUNING_FIXED,
    MODEL_FOLDER,
    make_run_dir,
    run_lock,
    setting_changes,
    settings_as_json,
)
from malmoi.train.tasks.classification import ANSWERS, LabeledTask, mean_loss, most_frequent, predictions
from malmoi.train.trainer import Trainer


@dataclass(frozen=True)
class LabeledFiles:
    """All labeled examples of a fine-tuning run."""

    classes: tuple[str, ...]
    train: Examples
    train_rows: tuple[Row, ...]
    validation: "ScoredFile | None"
    test: "ScoredFile | None"


@dataclass(frozen=True)
class ScoredFile:
    """A file that the exported model is scored on."""

    rows: tuple[Row, ...]
    examples: Examples


@dataclass(frozen=True)
class Finetuning:
    """A fine-tuning run that is ready for its first step."""

    settings: FinetuneSettings
    """With every number of steps resolved."""
    trainer: Trainer
    trainee: Trainee
    classifier: ClassifierSpec
    task: LabeledTask
    tokenizer: ExampleTokenizer
    files: LabeledFiles


def finetune(settings: FinetuneSettings) -> int:
    """Do what is left of the run of `settings`, and return the exit code.

    Raises:
        UserError: settings, model, examples or run folder are not usable.
        RunFailed: training diverged, a stopped run could not be saved, or a rank did not come.
    """
    console = Console(stderr=True, quiet=not is_main_rank(), highlight=False, soft_wrap=True)
    check_finetuning(settings)
    folder = make_run_dir(settings, FINETUNING_FIXED)
    try:
        finished = finished_finetuning(folder)
    except DamagedFileError as error:
        console.print(str(error).partition(";")[0] + "; scored and exported anew", markup=False)
        finished = None
    if finished is not None and finished.settings == settings_as_json(settings):
        console.print(
            f"{folder} is finished already: to train again, choose another --run or delete it; to continue, raise "
            "train.max_steps",
            markup=False,
        )
    else:
        stop = StopRequest()
        quiet_transformers()
        launch = read_launch_env()
        with met_ranks(launch, f"started {settings.run}"), stop.listening(), run_lock(folder):
            if not _train(settings, folder, console, stop):
                return EXIT_STOPPED
        finished = finished_finetuning(folder)
    # On another node it may not be seen yet.
    if finished is not None and is_main_rank():
        if finished.files:
            table_console(stderr=True).print(scores_table(finished))
        console.print(f"model   {folder / MODEL_FOLDER}  (of step {finished.model_step})", markup=False, soft_wrap=True)
    return EXIT_DONE


def check_finetuning(settings: FinetuneSettings) -> None:
    """Check that the settings make sense together.

    Raises:
        UserError: one is missing or out of its range, needs another one, or does not fit the launcher; or there is no
            such model or file.
    """
    load_plugins(settings.plugins)
    require_options("finetune", **{"init_from": bool(settings.init_from), "task.train": bool(settings.task.train)})
    check_settings(settings)
    read_launch_env()
    if settings.checkpoint.dir is not None:
        open_storage(settings.checkpoint.dir)
    if settings.eval.patience and settings.task.validation is None:
        raise UserError("eval.patience needs a validation file; name one with --task.validation")
    if settings.task.validation is not None and settings.checkpoint.keep_best < 1:
        raise UserError("checkpoint.keep_best 0 would delete the model that the validation file selects; set it to 1")
    # Before a folder is made for what cannot begin.
    spec, _ = _model_family(Path(settings.init_from))
    model_shape(settings, spec)
    for file in (settings.task.train, settings.task.validation, settings.task.test):
        if file is not None:
            require_rows(file, settings.task)


def build_finetuning(settings: FinetuneSettings, folder: Path, console: Console) -> Finetuning:
    """Read model and examples, join the ranks, and set up the trainer.

    Raises:
        UserError: settings, model, examples or launcher do not fit each other.
    """
    changes = setting_changes(folder, settings)
    require_trackers(settings.log.trackers, settings.log.tracker_args)
    spec, classifier = _model_family(Path(settings.init_from))
    shape = model_shape(settings, spec)
    tokenizer = example_tokenizer(Path(settings.init_from), shape.block_size)
    files = read_files(settings, tokenizer, console)
    planned = with_planned_steps(settings, len(files.train))
    max_steps = planned_steps(planned.train, len(files.train))
    build = partial(_classifier_model, planned, spec, classifier, shape, tokenizer, len(files.classes))
    model, deferred = built_model(planned.parallel, build)
    env = start_ranks(planned.train, planned.optim, planned.parallel)
    validation = None if files.validation is None else files.validation.examples
    task = LabeledTask(planned.task, files.train, validation, tokenizer.size, planned.train.seed)
    fingerprint = files.train.fingerprint()
    trainee = Trainee(spec, model, shape, tokenizer.size, task, fingerprint, max_steps, deferred=deferred)
    # An evaluation reads the whole file, and draws no sample.
    evaluation = EvalSettings(every=planned.eval.every, sample_tokens=0)
    trainer = build_trainer(planned, trainee, env, evaluation, planned.eval.patience, changes)
    return Finetuning(planned, trainer, trainee, classifier, task, tokenizer, files)


def model_shape(settings: FinetuneSettings, spec: ModelSpec) -> ModelSettings:
    """Return the shape of the model that is fine-tuned, with the dropout of the settings.

    Raises:
        UserError: the folder holds no such model.
    """
    folder = Path(settings.init_from)
    shape = replace(spec.shape_of_hf(folder), dropout=settings.dropout)
    spec.check_hf(folder, shape)
    return shape


def read_files(settings: FinetuneSettings, tokenizer: ExampleTokenizer, console: Console) -> LabeledFiles:
    """Return the examples of all files.

    Raises:
        UserError: a file is not usable, or holds a class that the training file lacks.
    """
    task = settings.task
    rows = read_rows(task.train, task)
    classes = classes_of(rows, task)

    def read(file: str) -> ScoredFile:
        own = rows if file == task.train else read_rows(file, task)
        examples = encoded(own, file, task, classes, tokenizer)
        if examples.cut:
            console.print(
                f"{file}: {examples.cut:,} of {len(examples.ids):,} texts are longer than the model's "
                f"{tokenizer.context} tokens and were truncated",
                markup=False,
                soft_wrap=True,
            )
        return ScoredFile(tuple(own), examples)

    return LabeledFiles(
        classes,
        read(task.train).examples,
        tuple(rows),
        None if task.validation is None else read(task.validation),
        None if task.test is None else read(task.test),
    )


def with_planned_steps(settings: FinetuneSettings, examples: int) -> FinetuneSettings:
    """Return the settings with steps, warmup, evaluations and checkpoints in numbers of steps.

    Raises:
        UserError: an evaluation would have no checkpoint.
    """
    max_steps = planned_steps(settings.train, examples)
    eval_every = settings.eval.every or math.ceil(examples / settings.train.global_batch_size)
    save_every = settings.checkpoint.every or eval_every
    if eval_every % save_every:
        raise UserError(
            f"checkpoint.every {save_every} does not divide eval.every {eval_every}, so that the best model would not "
            "be saved; set it to 0"
        )
    schedule = settings.schedule
    return replace(
        settings,
        train=replace(settings.train, max_steps=max_steps),
        schedule=replace(schedule, warmup_steps=schedule.warmup_steps or round(schedule.warmup_ratio * max_steps)),
        eval=replace(settings.eval, every=eval_every),
        checkpoint=replace(settings.checkpoint, every=save_every),
    )


def _model_family(folder: Path) -> tuple[ModelSpec, ClassifierSpec]:
    """Return the registry entries of the model in `folder`, by what its configuration calls itself."""
    kind = str(hf_config(folder).get("model_type"))
    able = [name for name, spec in MODELS.items() if spec.classifier is not None]
    if kind not in able:
        raise UserError(f"{folder}: holds a model of type {kind}; --init_from takes {', '.join(able)}")
    spec = registry_entry(MODELS, "init_from", kind)
    assert spec.classifier is not None
    return spec, spec.classifier


def _classifier_model(
    settings: FinetuneSettings,
    spec: ModelSpec,
    classifier: ClassifierSpec,
    shape: ModelSettings,
    tokenizer: ExampleTokenizer,
    num_classes: int,
) -> PreTrainedModel:
    seed, special = settings.train.seed, _special_token_ids(tokenizer)
    if settings.random_init:
        torch.manual_seed(seed)
        model = spec.build(spec.config(shape, padded_vocabulary(tokenizer.size), special))
    else:
        model = spec.from_hf(Path(settings.init_from), shape, tokenizer.size, special, seed)
    return classifier.build(model, settings.task.kind, num_classes, seed)


def _special_token_ids(tokenizer: ExampleTokenizer) -> SpecialTokenIds:
    named = tokenizer.tokenizer
    eos = tokenizer.pad if named.eos_token_id is None else named.eos_token_id
    bos = eos if named.bos_token_id is None else named.bos_token_id
    return SpecialTokenIds(bos, tokenizer.pad, eos, named.unk_token_id)


def _train(settings: FinetuneSettings, folder: Path, console: Console, stop: StopRequest) -> bool:
    """Train, export the best model and score it; false where a signal stopped it with a checkpoint saved."""
    with stop_ends_setup():
        run = build_finetuning(settings, folder, console)
    trainer, env = run.trainer, run.trainer.env
    console.print(_summary(run), soft_wrap=True)
    outcome = run_trainer(trainer, settings, stop)
    if outcome.stopped_by is None:
        step = trainer.restore_best()
        weights = trainer.full_weights()

        def export(still_working: Callable[[], None]) -> None:
            files: list[FileScores] = []
            write = partial(_export, run, weights, step, console, still_working)
            place_model_folder(folder, lambda into: files.extend(write(into)))
            counts = (outcome.state.step, step, len(run.files.train))
            result = FinetuneResult(settings_as_json(settings), *counts, run.files.classes, tuple(files))
            write_finetuning(folder, result)

        while_others_wait(env, export)
    env.accelerator.wait_for_everyone()
    trainer.backend.close()
    env.leave()
    return outcome.stopped_by is None


def _export(
    run: Finetuning,
    weights: dict[str, Tensor],
    step: int,
    console: Console,
    still_working: Callable[[], None],
    folder: Path,
) -> Iterator[FileScores]:
    """Write the model of `step`, whose weights these are, into `folder`, and yield its scores.

    Raises:
        RunFailed: the loss on a file is not finite.
    """
    kind, tokenizer, classes = run.settings.task.kind, run.tokenizer, run.files.classes
    run.classifier.export(weights, run.trainee.model.config, kind, tokenizer.size, tokenizer.pad, classes, folder)
    tokenizer.save(folder)
    yield from _scores(run, folder, step, console, still_working)


def _summary(run: Finetuning) -> str:
    plan, examples = run.trainer.plan, len(run.files.train)
    batch = plan.train.global_batch_size
    return (
        f"{plan.max_steps:,} steps of {batch} examples ({plan.micro_batch_size} examples x "
        f"{counted_ranks(run.trainer.env.dims.dp_size)} x {plan.accumulation} accumulated), "
        f"{plan.max_steps * batch / examples:.2f} epochs of {examples:,}"
    )


def _scores(
    run: Finetuning, model: Path, step: int, console: Console, still_working: Callable[[], None]
) -> Iterator[FileScores]:
    """Score the exported model, that of `step`, on validation and test files.

    Raises:
        RunFailed: its loss is not finite.
    """
    kind, env = run.settings.task.kind, run.trainer.env
    # A model that was sharded over its devices does not fit one of them.
    device = torch.device("cpu") if BACKENDS[env.backend].shards_weights else env.device
    named = (("validation", run.files.validation), ("test", run.files.test))
    files = [(part, scored) for part, scored in named if scored is not None]
    baselines = _baseline_records(run, [scored for _, scored in files], console, still_working)
    for (part, scored), compared in zip(files, baselines, strict=True):
        examples = scored.examples
        console.print(f"scoring the exported model on {examples.file}", markup=False)
        outputs = exported_outputs(model, examples, device, kind == "similarity", still_working)
        loss = mean_loss(outputs.astype(np.float64), examples, kind)
        if not math.isfinite(loss):
            raise RunFailed(
                f"step {step}: the loss of {examples.file} is {loss}, so no model is exported; fine-tune again in "
                "another --run with a lower optim.lr"
            )
        answers = predictions(outputs.astype(np.float64), examples, kind)
        write_predictions(Path(run.settings.run), part, _prediction_records(run, scored, outputs, answers))
        scores = _records(label_metrics(answers))
        constant = _records(label_metrics(most_frequent(run.files.train, examples, kind), resamples=0))
        classes: tuple[ClassRecord, ...] = ()
        confusion: tuple[tuple[int, ...], ...] = ()
        if answers.kind == "class":
            names = run.files.classes
            each = zip(names, class_scores(answers, len(names)), strict=True)
            classes = tuple(ClassRecord(name, *astuple(one)) for name, one in each)
            confusion = confusion_counts(answers, len(names))
        calibrated = None if answers.kind == "number" else calibration(probabilities(outputs), examples.answers)
        counts = (len(examples), loss)
        yield FileScores(
            part, examples.file, *counts, scores, constant, classes, confusion, tuple(compared), calibrated
        )


def _baseline_records(
    run: Finetuning, files: Sequence[ScoredFile], console: Console, still_working: Callable[[], None]
) -> list[list[BaselineRecord]]:
    """Return the scores of each baseline on each of `files`, learned from the rows that the model learned from."""
    records: list[list[BaselineRecord]] = [[] for _ in files]
    if not run.settings.eval.baselines or not files:
        return records
    console.print("scoring the baselines; --eval.baselines false leaves them out", markup=False)
    kind = run.settings.task.kind
    texts = [row.texts(kind) for row in run.files.train_rows]
    for baseline in fit_baselines(ANSWERS[kind], texts, run.files.train.answers, still_working):
        for scored, found in zip(files, records, strict=True):
            answers = baseline.predict([row.texts(kind) for row in scored.rows])
            predicted = Predictions(ANSWERS[kind], answers, scored.examples.answers)
            # The model's interval is what a difference is compared with.
            found.append(BaselineRecord(baseline.name, _records(label_metrics(predicted, resamples=0)), baseline.note))
    return records


def _prediction_records(
    run: Finetuning, scored: ScoredFile, outputs: NDArray[np.float32], answers: Predictions
) -> Iterator[PredictionRecord]:
    """Yield the answer to each row.

    Args:
        outputs: float32[rows, outputs].
    """
    kind, classes, is_class = run.settings.task.kind, run.files.classes, answers.kind == "class"
    shown = probabilities(outputs) if is_class else outputs
    for row, numbers, answer in zip(scored.rows, shown.tolist(), answers.predicted.tolist(), strict=True):
        predicted = classes[answer] if is_class else answer
        yield PredictionRecord(row.place, row.texts(kind), row.answer, predicted, tuple(numbers))


def _records(estimates: tuple[Estimate, ...]) -> tuple[ScoreRecord, ...]:
    return tuple(ScoreRecord(each.name, each.value, each.low, each.high) for each in estimates)
