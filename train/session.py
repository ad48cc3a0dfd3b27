"""From prepared shards to an exported model: sets up the ranks, runs the loop, writes what the run leaves."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerBase

from configs.errors import BadInput, RunFailed
from configs.schema import DataSettings, RunSettings
from data_prep.manifest import read_manifest
from data_prep.nodes import manifest_hash, require_agreement
from inference.generate import generate
from inference.model_folder import load_model, quiet_transformers
from train.backend import Backend, new_backend
from train.blocks import data_fingerprint, open_held_out, open_samples
from train.compiler import missing_compiler
from train.display import TrainingDisplay
from train.documents import QUARTERS, DocumentTokens, check_document_tokens
from train.export import export_run
from train.kernels import configured
from train.look_sampler import look_sampler
from train.loop import Training
from train.memory import activation_bytes, state_bytes
from train.micro_batch import block_trial, largest_micro_batch
from train.model import (
    SpecialTokenIds,
    TrainedGPT2,
    continued_model,
    export_model,
    new_model,
)
from train.parallel import Placement, start_ranks
from train.plan import Outcome, Plan
from train.run_folder import (
    PreparedRun,
    RunResult,
    is_main_rank,
    record_settings,
    setting_changes,
    settings_as_json,
    write_result,
)
from train.run_lock import only_training
from train.signals import StopRequest
from train.size import accumulation_steps, parameter_count, planned_steps
from train.task import HeldOutLook, PreTraining
from train.throughput import flops_per_token, peak_flops
from train.trackers import require_trackers

KEEP_NO_WHOLE_MODEL = ("zero3", "fsdp2")
"""Backends that cut weights over the ranks: what does not fit one device cannot be sampled on one."""


def train_session(settings: RunSettings, prepared: PreparedRun, console: Console) -> bool:
    """Train to the last step, export and sample; false where a signal stopped it with a checkpoint saved.

    Raises:
        BadInput: settings do not fit each other, the shards, the launch, or an older checkpoint.
        RunFailed: training went wrong beyond mending.
    """
    stop = StopRequest()
    quiet_transformers()
    with stop.listening(), only_training(prepared.folder):
        return _train(settings, prepared, console, stop)


@dataclass(frozen=True)
class Ready:
    """What a run needs to take its first step."""

    plan: Plan
    task: PreTraining
    placement: Placement
    backend: Backend
    config: GPT2Config
    special: SpecialTokenIds


def ready(settings: RunSettings, prepared: PreparedRun) -> Ready:
    """Join the ranks and set up model and plan.

    Raises:
        BadInput: settings do not fit each other, the shards or the launch.
    """
    train = settings.train
    changes = setting_changes(prepared.folder, settings)
    require_trackers(train.trackers)
    tokenizer = run_tokenizer(prepared.tokenizer)
    special = special_token_ids(prepared.tokenizer, tokenizer)
    vocab_size = read_manifest(prepared.sources[0].folder).vocab_size
    samples = open_samples(
        prepared.sources, settings.model.block_size, train.seed, document_tokens(settings.data, special)
    )
    for source in samples.sources:
        check_document_tokens(source.stream, special.bos, special.eos)
    model = initial_model(settings, vocab_size, special)
    sampler = look_sampler(settings.sampling, tokenizer, model.config, vocab_size, special)
    placement = start_ranks(train, settings.parallel, prepared.folder)
    accelerator, precision = placement.accelerator, placement.precision
    require_same_shards(accelerator, prepared)
    steps = planned_steps(train, samples.samples_per_epoch)
    short_samples = _short_samples(settings, steps)
    task = PreTraining(samples, open_held_out(prepared.sources), vocab_size, train.attention, short_samples)
    micro_batch = _micro_batch(settings, model, task, placement)
    accumulation = accumulation_steps(train.global_batch, micro_batch, placement.ranks)
    placement.launched.require_no_contradiction(train, accumulation)
    plan = Plan(
        run=prepared.folder,
        train=train,
        micro_batch=micro_batch,
        accumulation=accumulation,
        task=task,
        data_fingerprint=data_fingerprint(prepared.sources),
        steps=steps,
        flops_per_token=flops_per_token(settings.model, vocab_size),
        peak_flops=peak_flops(accelerator.device, precision),
        hang_seconds=settings.parallel.hang_seconds,
        sampler=None if placement.backend in KEEP_NO_WHOLE_MODEL else sampler,
        changes=changes,
    )
    configured(model, train, precision, settings.data.document_mask)
    config = model.config
    backend = new_backend(placement, model, train, micro_batch, accumulation)
    return Ready(plan, task, placement, backend, config, special)


def _short_samples(settings: RunSettings, steps: int) -> int:
    share, block = settings.data.length_warmup, settings.model.block_size
    if not 0 <= share <= 1:
        raise BadInput(f"data.length_warmup {share}: choose a share from 0 to 1")
    if share and block % QUARTERS:
        raise BadInput(f"data.length_warmup: model.block_size {block} is no multiple of {QUARTERS}; choose one, or 0")
    return round(share * steps) * settings.train.global_batch


def initial_model(settings: RunSettings, vocab_size: int, special: SpecialTokenIds) -> TrainedGPT2:
    """The model that a run begins with, the same for the same settings."""
    if settings.init_from is None:
        return new_model(settings.model, vocab_size, special, settings.train.seed)
    return continued_model(Path(settings.init_from), settings.model, vocab_size, special, settings.train.seed)


def _train(settings: RunSettings, prepared: PreparedRun, console: Console, stop: StopRequest) -> bool:
    made = ready(settings, prepared)
    plan, task, accelerator, train = made.plan, made.task, made.placement.accelerator, settings.train
    precision, ranks, backend = made.placement.precision, made.placement.ranks, made.placement.backend
    half = precision != "fp32"
    memory = state_bytes(settings.model, task.vocab_size, train.optimizer, backend, ranks, half)
    memory += activation_bytes(settings.model, task.vocab_size, train, plan.micro_batch, half, accelerator.device.type)
    console.print(
        f"{parameter_count(settings.model, task.vocab_size):,} parameters, {precision} on {ranks} x "
        f"{accelerator.device.type} ({backend}), about {memory / 2**30:.1f} GiB a rank"
    )
    epochs = plan.steps * train.global_batch / task.samples.samples_per_epoch
    console.print(
        f"{plan.steps:,} steps of {train.global_batch} x {settings.model.block_size} tokens "
        f"({plan.micro_batch} samples x {ranks} ranks x {plan.accumulation} accumulated), "
        f"{epochs:.2f} epochs of {task.samples.tokens:,} tokens"
    )
    for note in _notes(settings, made):
        console.print(note)
    accelerator.init_trackers("malmoi")
    with TrainingDisplay(accelerator.is_main_process) as display:
        training = Training(plan, made.backend, made.placement, display)
        if is_main_rank():
            # Only now is it sure that these settings train here.
            record_settings(prepared.folder, settings)
        outcome = training.run(stop)
    if outcome.look is not None and not math.isfinite(outcome.look.held_out_loss):
        raise RunFailed(
            f"step {outcome.progress.step}: the held-out loss is {outcome.look.held_out_loss}, so no model is exported;"
            " train again in another --run with a lower train.learning_rate"
        )
    weights = training.whole_weights() if outcome.stopped_by is None else {}
    model = None
    if weights:
        model = export_run(prepared, partial(export_model, weights, made.config, task.vocab_size, made.special))
        weights.clear()
    accelerator.wait_for_everyone()
    made.backend.close()
    made.placement.leave()
    if model is not None:
        # A model that was cut over its devices does not fit one of them.
        device = torch.device("cpu") if backend in KEEP_NO_WHOLE_MODEL else None
        _write_result(settings, prepared.folder, outcome, task.vocab_size, _samples(settings, model, device))
    return outcome.stopped_by is None


def _notes(settings: RunSettings, made: Ready) -> Iterator[str]:
    """What the run will do without, or do otherwise than its settings may have meant."""
    train, placement = settings.train, made.placement
    missing = missing_compiler()
    if placement.accelerator.device.type == "cuda" and missing is not None:
        yield f"the loss takes torch's own kernels, more than twice as long as ours: {missing}; install it"
    if made.plan.steps <= train.warmup_steps:
        yield (
            f"train.warmup_steps {train.warmup_steps:,}: the learning rate rises through all {made.plan.steps:,} steps "
            "of the run; lower it"
        )
    if made.task.held_out is None:
        yield "no document is held out, so there will be no held-out loss; raise data.held_out for one"
    elif placement.backend in KEEP_NO_WHOLE_MODEL and settings.sampling.every_look:
        yield (
            f"no samples at looks at held-out text: under {placement.backend} no rank holds a whole model to draw them "
            "from; the finished run has its own"
        )


def _micro_batch(settings: RunSettings, model: TrainedGPT2, task: PreTraining, placement: Placement) -> int:
    asked = settings.train.micro_batch
    if isinstance(asked, int):
        return asked
    device = placement.accelerator.device
    samples_a_rank = accumulation_steps(settings.train.global_batch, 1, placement.ranks)
    # Blocks that are not compiled take no less memory, and each size that is tried would be compiled.
    configured(model, replace(settings.train, compile=False), placement.precision, settings.data.document_mask)
    fits = block_trial(model.to(device), task, placement.precision, device)
    return largest_micro_batch(samples_a_rank, placement.accelerator, fits)


def require_same_shards(accelerator: Accelerator, prepared: PreparedRun) -> None:
    """See that every rank, on whichever disk it built, reads the same shards.

    Raises:
        BadInput: they differ.
    """
    own = b"".join(bytes.fromhex(manifest_hash(source.folder)) for source in prepared.sources)
    gathered = accelerator.gather(torch.tensor([list(own)], dtype=torch.uint8, device=accelerator.device))
    require_agreement([bytes(row).hex() for row in gathered.tolist()])


def document_tokens(data: DataSettings, special: SpecialTokenIds) -> DocumentTokens | None:
    """How documents are told apart in a sample; none where they are not."""
    if not data.document_mask:
        return None
    return "one" if special.bos == special.eos else "two"


def run_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer, ours or any that `AutoTokenizer` loads."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def special_token_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> SpecialTokenIds:
    """The special tokens of the tokenizer in `folder`; one token may begin and end a text.

    Raises:
        BadInput: no token ends a text.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise BadInput(f"{folder}: the tokenizer has no eos_token to end a text; set it in tokenizer_config.json")
    bos = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return SpecialTokenIds(bos, tokenizer.pad_token_id, eos, tokenizer.unk_token_id)


def _write_result(
    settings: RunSettings, run: Path, outcome: Outcome, vocab_size: int, samples: tuple[str, ...]
) -> None:
    """Mark the run complete."""
    score = outcome.look.score if isinstance(outcome.look, HeldOutLook) else None
    write_result(
        run,
        RunResult(
            settings=settings_as_json(settings),
            steps=outcome.progress.step,
            parameters=parameter_count(settings.model, vocab_size),
            held_out_loss=score.loss if score else None,
            bits_per_byte=score.bits_per_byte if score else None,
            prompt=settings.sampling.prompt,
            samples=samples,
        ),
    )


def _samples(settings: RunSettings, model: Path, device: torch.device | None) -> tuple[str, ...]:
    loaded = load_model(model, device)
    return next(iter(generate(loaded, [settings.sampling.prompt], settings.sampling))).samples
