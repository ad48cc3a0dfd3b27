"""Put a model, a task and the ranks together into a trainer: what pre-training, fine-tuning and dry runs share."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.model import ModelSettings
from malmoi.configs.outputs import EvalSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import BackendName, ParallelSettings
from malmoi.errors import RunFailed
from malmoi.registry import registry_entry
from malmoi.train.backends import BACKENDS, BackendInputs
from malmoi.train.backends.start import replicated_dims, require_optimizer_fits, resolved_backend
from malmoi.train.checkpoint.format import checkpoint_names
from malmoi.train.checkpoint.resume import no_data_changes
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.distributed.rank_zero import read_by_rank_zero
from malmoi.train.distributed.stop_consensus import StopRequest, stop_ends_setup
from malmoi.train.memory import state_size
from malmoi.train.metrics.progress_bar import ProgressBar
from malmoi.train.metrics.throughput import peak_flops
from malmoi.train.metrics.trackers import flat_config, log_event, start_trackers
from malmoi.train.models import MODELS, ModelSpec
from malmoi.train.models.compute import configure_compute
from malmoi.train.models.deferred_init import DeferredInit
from malmoi.train.optim import SCHEDULES
from malmoi.train.run_dir import SettingChange, record_settings, settings_as_json
from malmoi.train.tasks import TASKS, Task
from malmoi.train.tasks.eval_samples import EvalSampler
from malmoi.train.tasks.micro_batch import largest_computed_micro_batch, largest_micro_batch
from malmoi.train.train_plan import TrainOutcome, TrainPlan
from malmoi.train.trainer import Trainer


@dataclass(frozen=True)
class Trainee:
    """A model and what it is trained on."""

    spec: ModelSpec
    model: PreTrainedModel
    shape: ModelSettings
    vocab_size: int
    """Without padding."""
    task: Task
    data_fingerprint: str
    max_steps: int
    document_mask: bool = False
    """Whether attention gets a mask."""
    sampler: EvalSampler | None = None
    data_changes: Callable[[str], str] = no_data_changes
    deferred: DeferredInit | None = None
    """What makes the weights of `model`; None: they are made."""


def built_model(
    parallel: ParallelSettings, build: Callable[[], PreTrainedModel]
) -> tuple[PreTrainedModel, DeferredInit | None]:
    """Return the model that `build` builds, without its weights where the backend makes its shard of them by itself.

    Raises:
        UserError: setting and launcher ask for backends that do not fit each other or the ranks.
    """
    backend = resolved_backend(parallel.backend, read_launch_env())
    if not registry_entry(BACKENDS, "parallel.backend", backend).defers_init:
        return build(), None
    deferred = DeferredInit()
    with deferred:
        model = build()
    return model, deferred


def build_trainer(
    settings: RunSettings | FinetuneSettings,
    trainee: Trainee,
    env: DistEnv,
    evaluation: EvalSettings,
    patience: int = 0,
    changes: tuple[SettingChange, ...] = (),
) -> Trainer:
    """Return a trainer at step 0; `resume` and `run` are its caller's.

    Args:
        settings: with every number of steps resolved.

    Raises:
        UserError: batch, ranks and launcher do not fit, or what the model is to compute with is not installed.
    """
    train = settings.train
    micro_batch_size = _micro_batch_size(settings, trainee, env)
    accumulation = env.dims.accumulation_steps(train.global_batch_size, micro_batch_size)
    env.launch.require_agreement(train, settings.optim, micro_batch_size, accumulation)
    backend_spec = registry_entry(BACKENDS, "parallel.backend", env.backend)
    plan = TrainPlan(
        run=Path(settings.run),
        train=train,
        optim=settings.optim,
        schedule=settings.schedule,
        rollback=settings.rollback,
        checkpoint=settings.checkpoint,
        eval=evaluation,
        log=settings.log,
        watchdog_timeout=settings.parallel.watchdog_timeout,
        config=flat_config(settings_as_json(settings)),
        task=trainee.task,
        data_fingerprint=trainee.data_fingerprint,
        data_changes=trainee.data_changes,
        max_steps=trainee.max_steps,
        micro_batch_size=micro_batch_size,
        accumulation=accumulation,
        parameters=trainee.spec.num_params(trainee.shape, trainee.vocab_size),
        flops_per_token=trainee.spec.flops_per_token(trainee.shape, trainee.vocab_size),
        peak_flops=peak_flops(env.device, env.precision),
        patience=patience,
        # No rank holds a full model to draw samples from.
        sampler=None if backend_spec.shards_weights else trainee.sampler,
        # They decide whether a rank refuses to resume.
        changes=read_by_rank_zero(env, lambda: changes),
    )
    blocks = trainee.spec.blocks(trainee.model)
    configure_compute(trainee.model, blocks, train, env.precision, trainee.document_mask)
    backend = backend_spec.build(
        BackendInputs(
            env, trainee.model, trainee.spec, settings.optim, micro_batch_size, accumulation, trainee.deferred
        )
    )
    return Trainer(plan, backend, env, ProgressBar(shown=env.is_main))


def check_names(settings: RunSettings, backend: BackendName) -> None:
    """Check that the registries have what the settings name, and that optimizer, backend and ranks fit.

    Raises:
        UserError: a name is unknown, the optimizer cannot step what the backend gives it, or the ranks do not make up
            the copies of the model that are asked for.
    """
    if settings.parallel.replicas > 1:
        launch = read_launch_env()
        replicated_dims(settings.parallel, resolved_backend(backend, launch), launch)
    registry_entry(MODELS, "model.architecture", settings.model.architecture)
    registry_entry(SCHEDULES, "schedule.name", settings.schedule.name)
    registry_entry(TASKS, "objective", settings.objective)
    require_optimizer_fits(settings.optim, backend)


def run_trainer(trainer: Trainer, settings: RunSettings | FinetuneSettings, stop: StopRequest) -> TrainOutcome:
    """Resume from the newest checkpoint, and train to the last step or a stop signal.

    A plugin's function `setup_trainer(trainer)`, where it has one, is called first, for instance to add hooks.

    Raises:
        UserError: the checkpoint is of another run or other data.
        RunFailed: training diverged, or a stopped run could not be saved.
    """
    plan = trainer.plan
    for name in settings.plugins:
        setup = getattr(sys.modules.get(name), "setup_trainer", None)
        if setup is not None:
            setup(trainer)
    with stop_ends_setup():
        has_checkpoint = bool(checkpoint_names(trainer.storage))
        start_trackers(trainer.env.accelerator, plan.log, plan.run, plan.config, has_checkpoint)
        trainer.resume()
        if trainer.env.is_main:
            # Only now is it sure that these settings train here.
            record_settings(plan.run, settings, plan.parameters)
    try:
        return trainer.run(stop)
    except RunFailed as error:
        log_event(trainer.env.accelerator, "failure", str(error), trainer.state.step)
        raise


def _micro_batch_size(settings: RunSettings | FinetuneSettings, trainee: Trainee, env: DistEnv) -> int:
    train = settings.train
    if isinstance(train.micro_batch_size, int):
        return train.micro_batch_size
    samples_a_rank = env.dims.accumulation_steps(train.global_batch_size, 1)
    if trainee.deferred is not None:
        return largest_computed_micro_batch(partial(_needed_bytes, settings, trainee, env), samples_a_rank, env)
    # Blocks that are not compiled take no less memory, and each size that is tried would be compiled.
    blocks = trainee.spec.blocks(trainee.model)
    configure_compute(trainee.model, blocks, replace(train, compile=False), env.precision, trainee.document_mask)
    return largest_micro_batch(trainee.model.to(env.device), trainee.task, samples_a_rank, env)


def _needed_bytes(settings: RunSettings | FinetuneSettings, trainee: Trainee, env: DistEnv, samples: int) -> int:
    """Return the estimated memory of a rank that trains micro-batches of so many samples."""
    spec, shape, vocab_size = trainee.spec, trainee.shape, trainee.vocab_size
    sequences = math.ceil(samples * trainee.task.sample_tokens / shape.block_size)
    state = state_size(spec, shape, vocab_size, settings.optim.name)
    activations = spec.activation_bytes(shape, vocab_size, settings.train, sequences, env.is_half, env.device.type)
    return state.peak_bytes(env.backend, env.dims.shard_size, env.is_half) + activations
