"""`malmoi finetune`: a pre-trained model and labelled examples to a classifier, by the loop of pre-training."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from transformers import GPT2Config

from configs.errors import EXIT_DONE, EXIT_STOPPED, BadInput, RunFailed, require_options
from configs.finetune_settings import FinetuneLoopSettings, FinetuneSettings
from configs.schema import ModelSettings
from configs.table_console import table_console
from inference.label_scores import Estimate, label_scores
from inference.model_folder import quiet_transformers
from train.backend import Backend, new_backend
from train.display import TrainingDisplay
from train.example_tokens import ExampleTokenizer, example_tokenizer
from train.example_trial import example_trial
from train.examples import Examples, classes_of, encoded, read_rows
from train.export import place_model_folder
from train.fine_tuning import FineTuning, labelled, mean_loss, most_frequent, outputs_of
from train.finetune_result import (
    FileScores,
    FinetuneResult,
    ScoreRecord,
    finished_finetuning,
    scores_table,
    write_finetuning,
)
from train.head import GPT2WithHead, export_classifier, with_head
from train.kernels import configured
from train.loop import Training
from train.micro_batch import largest_micro_batch
from train.model import SpecialTokenIds, continued_model, new_model
from train.parallel import Placement, start_ranks
from train.plan import Plan
from train.pretrained import check_folder, model_config
from train.ranges import check_ranges
from train.run_folder import (
    MODEL_FOLDER,
    is_main_rank,
    make_run_folder,
    record_settings,
    setting_changes,
    settings_as_json,
)
from train.run_lock import only_training
from train.signals import StopRequest
from train.size import accumulation_steps, planned_steps
from train.throughput import flops_per_token, peak_flops
from train.trackers import require_trackers

FIXED = ("init_from", "fresh_weights", "dropout", "task.", "train.seed", "train.optimizer")
"""Beginnings of the names of settings that a fine-tuning keeps to its end."""


@dataclass(frozen=True)
class ReadTask:
    """All labelled examples of a fine-tuning."""

    classes: tuple[str, ...]
    train: Examples
    validation: Examples | None
    test: Examples | None


@dataclass(frozen=True)
class Ready:
    """What a fine-tuning needs to take its first step."""

    plan: Plan
    task: FineTuning
    placement: Placement
    backend: Backend
    config: GPT2Config


def finetune(settings: FinetuneSettings) -> int:
    """Do what `settings` say from where the run folder stands, and return the exit code.

    Raises:
        BadInput: settings, model, examples or run folder are not usable.
    """
    console = Console(stderr=True, quiet=not is_main_rank(), highlight=False)
    require_options("finetune", **{"init_from": bool(settings.init_from), "task.train": bool(settings.task.train)})
    check_settings(settings)
    folder = make_run_folder(settings, FIXED)
    done = finished_finetuning(folder)
    if done is not None and done.settings == settings_as_json(settings):
        console.print(
            f"{folder} is done already: to train again, choose another --run or delete it; to go on, raise train.steps",
            markup=False,
        )
    else:
        stop = StopRequest()
        quiet_transformers()
        with stop.listening(), only_training(folder):
            done = _finetune(settings, folder, console, stop)
    if done is None:
        return EXIT_STOPPED
    if done.files:
        table_console(stderr=True, quiet=not is_main_rank()).print(scores_table(done))
    console.print(f"model   {folder / MODEL_FOLDER}  (of step {done.model_step})", markup=False, soft_wrap=True)
    return EXIT_DONE


def check_settings(settings: FinetuneSettings) -> None:
    """See that the settings make sense together.

    Raises:
        BadInput: a number is out of its range, or a setting needs another one.
    """
    task, train = settings.task, settings.train
    if not 0 <= settings.dropout < 1:
        raise BadInput(f"dropout {settings.dropout}: choose 0 or more, and less than 1")
    for name, value in (("task.limit", task.limit), ("patience", settings.patience)):
        if value < 0:
            raise BadInput(f"{name} {value}: choose 0 or more")
    if not 0 <= task.language_model_weight < math.inf:
        raise BadInput(f"task.language_model_weight {task.language_model_weight}: choose 0 or more")
    if not 0 <= train.warmup_share <= 1:
        raise BadInput(f"train.warmup_share {train.warmup_share}: choose a share from 0 to 1")
    if settings.patience and task.validation is None:
        raise BadInput("patience needs a validation file to look at; name one with --task.validation")
    if task.validation is not None and train.keep_best < 1:
        raise BadInput("train.keep_best 0 would delete the model that the validation file chooses; set it to 1")
    check_ranges(train)


def read_task(settings: FinetuneSettings, tokenizer: ExampleTokenizer, console: Console) -> ReadTask:
    """The examples of all files.

    Raises:
        BadInput: a file is not usable, or holds a class that the training file lacks.
    """
    task = settings.task
    rows = read_rows(task.train, task)
    classes = classes_of(rows, task)

    def read(file: str) -> Examples:
        examples = encoded(rows if file == task.train else read_rows(file, task), file, task, classes, tokenizer)
        if examples.cut:
            console.print(
                f"{file}: {examples.cut:,} of {len(examples.ids):,} texts are longer than the model's "
                f"{tokenizer.context} tokens and were cut",
                markup=False,
                soft_wrap=True,
            )
        return examples

    return ReadTask(
        classes,
        read(task.train),
        None if task.validation is None else read(task.validation),
        None if task.test is None else read(task.test),
    )


def model_shape(settings: FinetuneSettings) -> ModelSettings:
    """The shape of the model that is fine-tuned, with the dropout of the settings.

    Raises:
        BadInput: the folder holds no GPT-2.
    """
    folder = Path(settings.init_from)
    config = model_config(folder)
    shape = ModelSettings(
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_embd=config["n_embd"],
        block_size=config["n_positions"],
        dropout=settings.dropout,
    )
    check_folder(folder, shape)
    return shape


def planned(train: FinetuneLoopSettings, examples: int) -> FinetuneLoopSettings:
    """The loop's settings with the number of examples known: warm-up, looks and checkpoints in steps.

    Raises:
        BadInput: a look would have no checkpoint.
    """
    steps = planned_steps(train, examples)
    evaluate_every = train.evaluate_every or math.ceil(examples / train.global_batch)
    save_every = train.save_every or evaluate_every
    if evaluate_every % save_every:
        raise BadInput(
            f"train.save_every {save_every} does not divide train.evaluate_every {evaluate_every}, so that the best "
            "model would not be saved; set it to 0"
        )
    warmup = train.warmup_steps or round(train.warmup_share * steps)
    return replace(train, steps=steps, evaluate_every=evaluate_every, save_every=save_every, warmup_steps=warmup)


def _finetune(settings: FinetuneSettings, folder: Path, console: Console, stop: StopRequest) -> FinetuneResult | None:
    """Train, choose, score and export; none where a signal stopped it with a checkpoint saved."""
    shape = model_shape(settings)
    tokenizer = example_tokenizer(Path(settings.init_from), shape.block_size)
    read = read_task(settings, tokenizer, console)
    made = ready_to_finetune(settings, folder, shape, tokenizer, read)
    plan, accelerator = made.plan, made.placement.accelerator
    console.print(
        f"{plan.steps:,} steps of {plan.train.global_batch} examples ({plan.micro_batch} examples x "
        f"{made.placement.ranks} ranks x {plan.accumulation} accumulated), "
        f"{plan.steps * plan.train.global_batch / len(read.train):.2f} epochs of {len(read.train):,}",
        soft_wrap=True,
    )
    accelerator.init_trackers("malmoi")
    with TrainingDisplay(accelerator.is_main_process) as display:
        training = Training(plan, made.backend, made.placement, display)
        if accelerator.is_main_process:
            # Only now is it sure that these settings train here.
            record_settings(folder, settings)
        outcome = training.run(stop)
    result = None
    if outcome.stopped_by is None:
        step = training.take_best()
        parts = (("validation", read.validation), ("test", read.test))
        files = tuple(_scores(part, examples, made) for part, examples in parts if examples is not None)
        for each in files:
            if not math.isfinite(each.loss):
                raise RunFailed(
                    f"step {step}: the loss of {each.file} is {each.loss}, so no model is exported; fine-tune again in "
                    "another --run with a lower train.learning_rate"
                )
        weights = training.whole_weights()
        result = FinetuneResult(
            settings_as_json(settings), outcome.progress.step, step, len(read.train), read.classes, files
        )
        if accelerator.is_main_process:

            def write(into: Path) -> None:
                kind, classes = settings.task.kind, read.classes
                export_classifier(weights, made.config, kind, tokenizer.size, tokenizer.pad, classes, into)
                tokenizer.save(into)

            place_model_folder(folder, write)
            write_finetuning(folder, result)
    accelerator.wait_for_everyone()
    made.backend.close()
    made.placement.leave()
    return result


def ready_to_finetune(
    settings: FinetuneSettings, folder: Path, shape: ModelSettings, tokenizer: ExampleTokenizer, read: ReadTask
) -> Ready:
    """Join the ranks and set up model and plan.

    Raises:
        BadInput: settings do not fit each other, the examples or the launch.
    """
    changes = setting_changes(folder, settings)
    require_trackers(settings.train.trackers)
    train = planned(settings.train, len(read.train))
    special = _special_token_ids(tokenizer)
    if settings.fresh_weights:
        language_model = new_model(shape, tokenizer.size, special, train.seed)
    else:
        language_model = continued_model(Path(settings.init_from), shape, tokenizer.size, special, train.seed)
    model = with_head(language_model, settings.task.kind, len(read.classes), train.seed)
    placement = start_ranks(train, settings.parallel, folder)
    assert train.steps is not None
    task = FineTuning(settings.task, read.train, read.validation, tokenizer.size, train.seed)
    micro_batch = _micro_batch(train, model, task, placement)
    accumulation = accumulation_steps(train.global_batch, micro_batch, placement.ranks)
    placement.launched.require_no_contradiction(train, accumulation)
    plan = Plan(
        run=folder,
        train=train,
        micro_batch=micro_batch,
        accumulation=accumulation,
        task=task,
        data_fingerprint=read.train.fingerprint(),
        steps=train.steps,
        flops_per_token=flops_per_token(shape, tokenizer.size),
        peak_flops=peak_flops(placement.accelerator.device, placement.precision),
        hang_seconds=settings.parallel.hang_seconds,
        patience=settings.patience,
        changes=changes,
    )
    configured(model, train, placement.precision, document_mask=False)
    config = model.config
    return Ready(plan, task, placement, new_backend(placement, model, train, plan.micro_batch, accumulation), config)


def _micro_batch(train: FinetuneLoopSettings, model: GPT2WithHead, task: FineTuning, placement: Placement) -> int:
    if isinstance(train.micro_batch, int):
        return train.micro_batch
    device = placement.accelerator.device
    samples_a_rank = accumulation_steps(train.global_batch, 1, placement.ranks)
    # Blocks that are not compiled take no less memory, and each size that is tried would be compiled.
    configured(model, replace(train, compile=False), placement.precision, document_mask=False)
    fits = example_trial(model.to(device), task, placement.precision, device)
    return largest_micro_batch(samples_a_rank, placement.accelerator, fits)


def _special_token_ids(tokenizer: ExampleTokenizer) -> SpecialTokenIds:
    named = tokenizer.tokenizer
    eos = tokenizer.pad if named.eos_token_id is None else named.eos_token_id
    bos = eos if named.bos_token_id is None else named.bos_token_id
    return SpecialTokenIds(bos, tokenizer.pad, eos, named.unk_token_id)


def _scores(part: str, examples: Examples, made: Ready) -> FileScores:
    kind = made.task.settings.kind
    outputs = outputs_of(made.backend, made.placement.accelerator, examples, made.plan.micro_batch, lambda: True)
    assert outputs is not None  # nothing breaks it off
    scores = _records(label_scores(labelled(outputs, examples, kind)))
    constant = _records(label_scores(most_frequent(made.task.examples, examples, kind), resamples=0))
    return FileScores(part, examples.file, len(examples), mean_loss(outputs, examples, kind), scores, constant)


def _records(estimates: tuple[Estimate, ...]) -> tuple[ScoreRecord, ...]:
    return tuple(ScoreRecord(each.name, each.value, each.low, each.high) for each in estimates)
