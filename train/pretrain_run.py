"""Pre-training of a prepared run: the model is trained, exported and asked for samples."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.nodes import manifest_hash, require_agreement
from malmoi.data_prep.shards.manifest import read_manifest
from malmoi.data_prep.tokenizer.encode import auto_tokenizer
from malmoi.errors import RunFailed, UserError
from malmoi.inference.generate import sample_prompts
from malmoi.inference.model_folder import load_model, quiet_transformers
from malmoi.ranks import counted_ranks
from malmoi.registry import registry_entry
from malmoi.thread_waiting import counted_threads
from malmoi.train.backends import BACKENDS
from malmoi.train.backends.start import start_ranks
from malmoi.train.builder import Trainee, build_trainer, built_model, run_trainer
from malmoi.train.data.dataset import data_changes, data_fingerprint, open_dataset
from malmoi.train.data.document_mask import DocumentTokens, check_document_tokens
from malmoi.train.data.sample_order import planned_steps
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.stop_consensus import StopRequest, stop_ends_setup
from malmoi.train.export import copy_tokenizer, place_model_folder
from malmoi.train.memory import state_size
from malmoi.train.metrics.trackers import require_trackers
from malmoi.train.models import MODELS, ModelSpec, SpecialTokenIds
from malmoi.train.models.compute import missing_compiler
from malmoi.train.models.spec import padded_vocabulary
from malmoi.train.run_dir import PreparedRun, RunResult, run_lock, setting_changes, settings_as_json, write_result
from malmoi.train.tasks import TASKS
from malmoi.train.tasks.eval_samples import EvalSampler, one_sample_settings
from malmoi.train.tasks.language_modeling import LanguageModeling
from malmoi.train.train_plan import TrainOutcome
from malmoi.train.trainer import Trainer


def run_prepared(settings: RunSettings, prepared: PreparedRun, console: Console) -> bool:
    """Train a prepared run to its last step, export and sample; false where a signal stopped it, with a checkpoint.

    Raises:
        UserError: settings do not fit each other, the shards, the launcher, or an older checkpoint.
        RunFailed: training diverged beyond the rollbacks allowed, or a stopped run could not be saved.
    """
    stop = StopRequest()
    quiet_transformers()
    with stop.listening(), run_lock(prepared.folder):
        with stop_ends_setup():
            run = build_pretraining(settings, prepared)
        for line in (*_summary(settings, run), *_notes(settings, run)):
            console.print(line)
        outcome = run_trainer(run.trainer, settings, stop)
        if outcome.evaluation is not None and not math.isfinite(outcome.evaluation.loss):
            raise RunFailed(
                f"step {outcome.state.step}: the validation loss is {outcome.evaluation.loss}, so no model is "
                "exported; train again in another --run with a lower optim.lr"
            )
        _finish(settings, prepared, run, outcome)
    return outcome.stopped_by is None


@dataclass(frozen=True)
class Pretraining:
    """A run that is ready for its first step."""

    trainer: Trainer
    trainee: Trainee
    special: SpecialTokenIds
    samples_per_epoch: int
    train_tokens: int
    """In the training split."""

    @property
    def env(self) -> DistEnv:
        """Where it trains."""
        return self.trainer.env


def build_pretraining(settings: RunSettings, prepared: PreparedRun) -> Pretraining:
    """Join the ranks, and set up model, task and trainer.

    Raises:
        UserError: settings do not fit each other, the shards or the launcher.
    """
    changes = setting_changes(prepared.folder, settings)
    require_trackers(settings.log.trackers, settings.log.tracker_args)
    spec = registry_entry(MODELS, "model.architecture", settings.model.architecture)
    tokenizer = load_tokenizer(prepared.tokenizer)
    special = special_token_ids(prepared.tokenizer, tokenizer)
    vocab_size = read_manifest(prepared.sources[0].folder).vocab_size
    dataset = open_dataset(
        prepared.sources,
        settings.model.block_size,
        settings.train.seed,
        document_tokens(special) if settings.data.document_mask else None,
    )
    for source in dataset.sources:
        check_document_tokens(source.stream, special.bos, special.eos)
    model, deferred = built_model(settings.parallel, partial(initial_model, settings, spec, vocab_size, special))
    sample = one_sample_settings(settings.generate, settings.eval.sample_tokens, tokenizer, settings.model.block_size)
    sampler = None if sample is None else EvalSampler(spec, tokenizer, model.config, vocab_size, special, sample)
    env = start_ranks(settings.train, settings.optim, settings.parallel)
    require_same_shards(env, prepared)
    max_steps = planned_steps(settings.train, dataset.samples_per_epoch)
    task = registry_entry(TASKS, "objective", settings.objective)(
        settings, dataset, prepared.sources, vocab_size, max_steps
    )
    trainee = Trainee(
        spec=spec,
        model=model,
        shape=settings.model,
        vocab_size=vocab_size,
        task=task,
        data_fingerprint=data_fingerprint(prepared.sources),
        data_changes=partial(data_changes, prepared.sources),
        max_steps=max_steps,
        document_mask=settings.data.document_mask,
        sampler=sampler,
        deferred=deferred,
    )
    trainer = build_trainer(settings, trainee, env, settings.eval, changes=changes)
    return Pretraining(trainer, trainee, special, dataset.samples_per_epoch, dataset.tokens)


def initial_model(settings: RunSettings, spec: ModelSpec, vocab_size: int, special: SpecialTokenIds) -> PreTrainedModel:
    """Return the model that a run begins with, the same for the same settings, its vocabulary padded."""
    shape, seed = settings.model, settings.train.seed
    if settings.init_from is not None:
        return spec.from_hf(Path(settings.init_from), shape, vocab_size, special, seed)
    torch.manual_seed(seed)
    return spec.build(spec.config(shape, padded_vocabulary(vocab_size), special))


def require_same_shards(env: DistEnv, prepared: PreparedRun) -> None:
    """Check that every rank, on whichever disk it built, reads the same shards.

    Raises:
        UserError: they differ.
    """
    own = b"".join(bytes.fromhex(manifest_hash(source.folder)) for source in prepared.sources)
    gathered = env.accelerator.gather(torch.tensor([list(own)], dtype=torch.uint8, device=env.device))
    require_agreement([bytes(row).hex() for row in gathered.tolist()])


def document_tokens(special: SpecialTokenIds) -> DocumentTokens:
    """Return how documents are separated in the shards."""
    return "one" if special.bos == special.eos else "two"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the run's tokenizer, ours or any that `AutoTokenizer` loads.

    Raises:
        UserError: it does not load.
    """
    tokenizer: PreTrainedTokenizerBase = auto_tokenizer(folder)
    return tokenizer


def special_token_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> SpecialTokenIds:
    """Return the special tokens of the tokenizer in `folder`; one token may begin and end a text.

    Raises:
        UserError: no token ends a text.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError(f"{folder}: the tokenizer has no eos_token to end a text; set it in tokenizer_config.json")
    bos = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return SpecialTokenIds(bos, tokenizer.pad_token_id, eos, tokenizer.unk_token_id)


def _summary(settings: RunSettings, run: Pretraining) -> Iterator[str]:
    """Yield the size of the run, a line each."""
    plan, env, trainee, train = run.trainer.plan, run.env, run.trainee, settings.train
    ranks, device = env.dims.dp_size, env.device.type
    size = state_size(trainee.spec, trainee.shape, trainee.vocab_size, settings.optim.name)
    memory = size.peak_bytes(env.backend, env.dims.shard_size, env.is_half) + trainee.spec.activation_bytes(
        trainee.shape, trainee.vocab_size, train, plan.micro_batch_size, env.is_half, device
    )
    threads = f", {counted_threads(torch.get_num_threads())}" if device == "cpu" else ""
    yield (
        f"{plan.parameters:,} parameters, {env.precision} on {ranks} x {device} ({env.backend}{threads}), about "
        f"{memory / 2**30:.1f} GiB a rank"
    )
    yield (
        f"{plan.max_steps:,} steps of {train.global_batch_size} x {settings.model.block_size} tokens "
        f"({plan.micro_batch_size} samples x {counted_ranks(ranks)} x {plan.accumulation} accumulated), "
        f"{plan.max_steps * train.global_batch_size / run.samples_per_epoch:.2f} epochs of {run.train_tokens:,} tokens"
    )


def _notes(settings: RunSettings, run: Pretraining) -> Iterator[str]:
    """Yield what the run will do without, or do otherwise than its settings may have meant."""
    plan, env, task = run.trainer.plan, run.env, run.trainee.task
    missing = missing_compiler()
    if env.device.type == "cuda" and missing is not None:
        yield f"the loss takes torch's own kernels, more than twice as long as ours: {missing}; install it"
    warmup = settings.schedule.warmup_steps
    if plan.max_steps <= warmup:
        yield (
            f"schedule.warmup_steps {warmup:,}: the learning rate rises through all {plan.max_steps:,} steps of "
            "the run; lower it"
        )
    if isinstance(task, LanguageModeling) and task.validation is None:
        yield "the validation split is empty, so there will be no validation loss; raise data.val_fraction for one"
    elif run.trainee.sampler is not None and plan.sampler is None:
        yield (
            f"no samples at evaluations: under {env.backend} no rank holds a full model to draw them from; the "
            "finished run has its own"
        )


def _finish(settings: RunSettings, prepared: PreparedRun, run: Pretraining, outcome: TrainOutcome) -> None:
    """Export the trained model, leave the ranks, and write the result of a run that was not stopped."""
    trainer, trainee, env = run.trainer, run.trainee, run.env
    config = trainee.model.config
    weights = trainer.full_weights() if outcome.stopped_by is None else {}
    model_folder = None
    if weights:

        def write(folder: Path) -> None:
            trainee.spec.to_hf(weights, config, trainee.vocab_size, run.special).save_pretrained(folder)
            copy_tokenizer(prepared.tokenizer, folder)

        model_folder = place_model_folder(prepared.folder, write)
        weights.clear()
    env.accelerator.wait_for_everyone()
    trainer.backend.close()
    env.leave()
    if model_folder is None:
        return
    # A model that was sharded over its devices does not fit one of them.
    device = torch.device("cpu") if BACKENDS[env.backend].shards_weights else None
    loaded = load_model(model_folder, device)
    samples = next(iter(sample_prompts(loaded, [settings.generate.prompt], settings.generate))).samples
    perplexity = getattr(outcome.evaluation, "result", None)
    write_result(
        prepared.folder,
        RunResult(
            settings=settings_as_json(settings),
            steps=outcome.state.step,
            parameters=trainer.plan.parameters,
            val_loss=None if outcome.evaluation is None else outcome.evaluation.loss,
            bits_per_byte=None if perplexity is None else perplexity.bits_per_byte,
            prompt=settings.generate.prompt,
            samples=samples,
        ),
    )
