"""The training loop: next batch, forward, backward, step, log, evaluate, save.

One module of more than 400 lines, because it is one class that is read from top to bottom.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b

import torch
from torch import Tensor

from malmoi.errors import RunFailed
from malmoi.thread_waiting import brief_waits_where_busy
from malmoi.train.backends import Backend
from malmoi.train.backends.state_dict import WEIGHT
from malmoi.train.checkpoint.async_writer import CheckpointWriter
from malmoi.train.checkpoint.format import (
    Checkpoint,
    CheckpointTensors,
    best_valid_checkpoint,
    checkpoint_names,
    newest_valid_checkpoint,
)
from malmoi.train.checkpoint.resume import check_resumable, select_checkpoint
from malmoi.train.checkpoint.storage import open_storage
from malmoi.train.checkpoint.train_state import TrainState
from malmoi.train.data.prefetch import Prefetcher
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.flight_recorder import HANG_FOLDER, report_hang
from malmoi.train.distributed.rank_zero import read_by_rank_zero
from malmoi.train.distributed.stop_consensus import StopConsensus, StopRequest
from malmoi.train.distributed.watchdog import Watchdog
from malmoi.train.metrics.log_file import METRICS_FILE, SAMPLES_FILE, changed_logs, cut_back, log_records
from malmoi.train.metrics.loss_spike import LossSpikeDetector
from malmoi.train.metrics.profiler import profiled_step
from malmoi.train.metrics.progress_bar import ProgressBar
from malmoi.train.metrics.records import (
    OWN_NAMES,
    CustomMetrics,
    EventMetrics,
    append_metrics,
    read_metrics,
    replace_evaluation,
    tracked_values,
)
from malmoi.train.metrics.sample_log import EvalSample, write_eval_sample
from malmoi.train.metrics.throughput import peak_memory_mib
from malmoi.train.metrics.timers import StepTimers
from malmoi.train.metrics.trackers import SAMPLE, log_event, log_text
from malmoi.train.optim.lr_schedule import learning_rate
from malmoi.train.run_dir import checkpoint_url
from malmoi.train.step_result import PendingStep, TrainStep, step_metrics
from malmoi.train.tasks import EvalResult
from malmoi.train.train_plan import TrainOutcome, TrainPlan

Hook = Callable[["Trainer"], None]


class Trainer:
    """One rank of a run: a model under a backend, trained for `TrainPlan.max_steps` optimizer steps."""

    def __init__(self, plan: TrainPlan, backend: Backend, env: DistEnv, progress: ProgressBar | None = None) -> None:
        self.plan, self.backend, self.env = plan, backend, env
        self.progress = progress or ProgressBar(shown=False)
        self.state = TrainState(0, 0, 0, 0, plan.data_fingerprint, None, None)
        self.evaluations: list[tuple[int, float]] = []
        """Evaluated steps, and the validation loss there."""
        self.storage = open_storage(checkpoint_url(plan.run, plan.checkpoint))
        self.writer = CheckpointWriter(self.storage, plan.checkpoint)
        self.spikes = LossSpikeDetector(plan.rollback)
        self.watchdog = Watchdog(plan.watchdog_timeout, self._report_hang if env.dims.dp_size > 1 else None)
        self.samples = Prefetcher(plan.task.read, plan.micro_batch_size)
        self.timers = StepTimers()
        self.stop = StopConsensus(StopRequest(), env)
        self.pending = PendingStep()
        self._hooks: list[tuple[Hook, int]] = []

    def resume(self) -> None:
        """Continue from the newest valid checkpoint, if there is one; every rank must call this.

        Raises:
            UserError: it is a checkpoint of another run, or of other data.
        """
        if self.env.is_main:
            self.storage.clean_up()
        checkpoint = self._select_newest()
        if checkpoint is None:
            if self.env.is_main and checkpoint_names(self.storage):
                self.progress.show("no checkpoint is valid: starting from step 0")
            self._forget_after(0)
            return
        place = self.storage.place(checkpoint.name)
        check_resumable(checkpoint, place, self.plan.resume_conditions())
        self._restore(checkpoint)
        self.spikes.load_state(checkpoint.state.loss_spike)
        before = checkpoint.state.data_fingerprint
        self.state = replace(self.state, data_fingerprint=self.plan.data_fingerprint)
        seen = read_by_rank_zero(self.env, lambda: read_metrics(self.plan.run).evaluations)
        self.evaluations = [(record.step, record.loss) for record in seen if record.step <= self.state.step]
        self._forget_after(self.state.step)
        texts = [change.text for change in self.plan.changes]
        if before != self.plan.data_fingerprint:
            texts.append(f"other data ({self.plan.data_changes(before) or f'{before[:12]} before'})")
        changes = "".join(f"; {text}" for text in texts)
        self._record_event("resume", f"resuming from step {self.state.step} ({place}){changes}")

    def run(self, stop: StopRequest) -> TrainOutcome:
        """Train until the last step or a stop signal; either way the last step done is in a checkpoint.

        Raises:
            RunFailed: training diverged beyond the rollbacks allowed, or a stopped run could not be saved.
        """
        self.stop = StopConsensus(stop, self.env)
        self.progress.start(self.state.step, self.plan.max_steps)
        self.timers = StepTimers()
        with self.progress, self.watchdog, brief_waits_where_busy():
            stopped_by = self._train_steps()
            evaluation = None
            if self.state.step == self.plan.max_steps:
                evaluation = self.evaluate(None)
                stopped_by = self.stop.now() if evaluation is None else None
                if evaluation is not None and self.plan.checkpoint.keep_best:
                    # So that the last step too is among those that the best is selected from.
                    self.save(wait=True)
        if stopped_by is not None:
            self._report_stop(stopped_by)
        else:
            summary = "" if evaluation is None else f"; {evaluation.summary()}"
            log_event(self.env.accelerator, "finish", f"trained to step {self.state.step}{summary}", self.state.step)
        return TrainOutcome(self.state, stopped_by, evaluation)

    def train_step(self) -> TrainStep | None:
        """Do one optimizer step; None where this one or the one before diverged and the run was rolled back.

        Raises:
            RunFailed: training diverged beyond the rollbacks allowed.
        """
        plan, env, state = self.plan, self.env, self.state
        num_target_tokens = plan.task.num_target_tokens(state.samples, plan.train.global_batch_size)
        loss_sum = torch.zeros((), device=env.device)
        for number in range(plan.accumulation):
            first_sample = state.samples + env.dims.micro_batch_index(number) * plan.micro_batch_size
            is_last = number == plan.accumulation - 1
            with self.timers.data_wait():
                batch = self.samples.take(first_sample)
            _seed_dropout(plan.train.seed, first_sample)
            with self.backend.micro_batch(is_last):
                with self.backend.autocast():
                    micro_loss_sum = plan.task.loss_sum(self.backend.model, batch, env.device)
                if is_last:
                    self.timers.reached_all_reduce()
                    # Reduced while the backward pass computes.
                    self.stop.ask()
                self.backend.backward(micro_loss_sum, max(1, num_target_tokens))
            loss_sum += micro_loss_sum.detach()
            self.samples.prefetch(first_sample + env.dims.dp_size * plan.micro_batch_size, env.device)
        # Now that the device has work, the host can wait for the step before.
        if not self._check_pending_step():
            return None
        steps_taken = self.state.step - self.state.skipped_steps
        lr = learning_rate(steps_taken, plan.max_steps, plan.optim, plan.schedule)
        loss_scale = self.backend.loss_scale()
        result = self.backend.step(lr)
        self.watchdog.heartbeat()
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            samples=self.state.samples + plan.train.global_batch_size,
            loss_scale=self.backend.loss_scale(),
            val_loss=None,
        )
        self.timers.end_step()
        self.progress.advance(self.state.step)
        step = TrainStep(loss_sum, num_target_tokens, lr, result.grad_norm, loss_scale)
        self.pending.put(step)
        must_check = self.spikes.needs_losses or not result.is_pending
        return None if must_check and not self._check_pending_step() else step

    def evaluate(self, max_tokens: int | None) -> EvalResult | None:
        """Evaluate on up to `max_tokens` validation tokens; None where there are none or a signal stopped it."""
        plan, step = self.plan, self.state.step

        def keep_going() -> bool:
            self.watchdog.heartbeat()
            return self.stop.now() is None

        with self.timers.evaluation():
            result = plan.task.evaluate(self.backend, self.env, plan.micro_batch_size, max_tokens, keep_going)
            if result is None:
                return None
            self._draw_sample()
        self.state = replace(self.state, val_loss=result.loss)
        # By a process that was killed before it could say that the run is done.
        is_done_again = step in [evaluated for evaluated, _ in self.evaluations]
        self.evaluations = [earlier for earlier in self.evaluations if earlier[0] != step]
        self.evaluations.append((step, result.loss))
        record = result.record(step, self.tokens_seen)
        if self.env.is_main:
            (replace_evaluation if is_done_again else append_metrics)(plan.run, record)
        self.env.accelerator.log(tracked_values(record), step=step)
        self.progress.show(f"step {step}  {result.summary()}")
        return result

    def save(self, wait: bool) -> None:
        """Have rank 0 write a checkpoint; every rank takes part in gathering it.

        Args:
            wait: until it is safe on disk.
        """
        self.state = replace(self.state, loss_spike=self.spikes.state())
        with self.timers.checkpoint():
            self.watchdog.heartbeat()
            if self.env.is_main:
                self.writer.save(replace(self.state, logs=log_records(self.plan.run)), self.backend.state_tensors())
            else:
                for _ in self.backend.state_tensors():
                    pass
            if wait:
                self._wait_for_writer()

    def restore_best(self) -> int:
        """Restore the valid checkpoint of lowest validation loss, or else the newest, and return its step; every rank
        must call this.

        Raises:
            RunFailed: no checkpoint is valid.
        """
        best = select_checkpoint(self.storage, best_valid_checkpoint, self.env, self.progress.show)
        if best is None:
            raise RunFailed(f"{self.storage.place('')}: no checkpoint is valid; delete the folder and train again")
        self._restore(best)
        return best.state.step

    def full_weights(self) -> dict[str, Tensor]:
        """Return all weights by parameter name on the CPU, on rank 0; every rank must call this."""
        weights = {}
        for name, tensor in self.backend.state_tensors():
            if not name.startswith(f"{WEIGHT}."):
                break  # optimizer state, which comes after all weights
            if self.env.is_main:
                weights[name.removeprefix(f"{WEIGHT}.")] = tensor.cpu()
        return weights

    def log(self, name: str, value: float) -> None:
        """Log a value of one's own at this step, to metrics.jsonl and the trackers; every rank may call this.

        Raises:
            ValueError: `name` is that of a metric that every run has.
        """
        if name in OWN_NAMES:
            raise ValueError(f"{name}: every run has a metric of that name; log it as another, such as my/{name}")
        record = CustomMetrics(self.state.step, self.tokens_seen, {name: float(value)})
        if self.env.is_main:
            append_metrics(self.plan.run, record)
        self.env.accelerator.log(tracked_values(record), step=record.step)

    def add_hook(self, hook: Hook, every: int = 1) -> None:
        """Have `hook(trainer)` called on all ranks after every `every` steps, before evaluation and checkpoint, in the
        order in which hooks were added. What it keeps for itself is not in a checkpoint."""
        self._hooks.append((hook, every))

    @property
    def tokens_seen(self) -> int:
        """Training tokens consumed so far."""
        return self.state.samples * self.plan.task.sample_tokens

    def _train_steps(self) -> str | None:
        """Train to the last step, or until a signal, which is returned; either way the last step done is saved."""
        plan = self.plan
        # A signal may have come before or during the evaluation of this step.
        stopped_by = self._evaluate_if_due()
        while not self._is_finished() and stopped_by is None:
            with profiled_step(plan.run, self.state.step + 1, plan.log.profile_steps, self.env.dims.dp_rank):
                step = self.train_step()
            if step is None:
                continue
            requested = self.stop.answer()
            done = self.state.step
            logs = done == plan.max_steps or _is_due(done, plan.log.every)
            saves = _is_due(done, plan.checkpoint.every)
            hooks = [hook for hook, every in self._hooks if _is_due(done, every)]
            must_check = logs or saves or hooks or requested or self._is_evaluation_due()
            if must_check and not self._check_pending_step():
                continue
            if logs:
                self._log_step(step)
            for hook in hooks:
                hook(self)
            stopped_by = requested or self._evaluate_if_due()
            ends = self._is_finished() or stopped_by is not None
            if ends or saves:
                self.save(wait=ends)
            self._show_problems()
        return stopped_by

    def _check_pending_step(self) -> bool:
        """Wait for the newest step's gradient norm; false where it diverged and the run was rolled back."""
        step = self.pending.take()
        if step is None:
            return True
        skipped = step.was_skipped()
        self.state = replace(self.state, skipped_steps=self.state.skipped_steps + int(skipped))
        if skipped and step.loss_scale is not None:
            if step.loss_scale.is_exhausted:
                raise RunFailed(
                    f"step {self.state.step}: fp16's loss scale is at its minimum of {step.loss_scale.scale:g} and the "
                    "gradient is still not finite: lower optim.lr, or use bf16 or fp32"
                )
            return True
        problem = self.spikes.problem(self._mean_loss(step) if self.spikes.needs_losses else None, skipped)
        if problem is not None:
            self._roll_back(problem)
        return problem is None

    def _roll_back(self, problem: str) -> None:
        """Return to the newest checkpoint, and continue with the samples after those that diverged."""
        self._wait_for_writer()
        allowed = self.plan.rollback.max_rollbacks
        if self.state.rollbacks >= allowed:
            raise RunFailed(
                f"step {self.state.step}: {problem}, after {allowed} rollbacks; lower optim.lr, in another --run "
                f"if its checkpoints have diverged too, or check the data around sample {self.state.samples}"
            )
        checkpoint = self._select_newest()
        if checkpoint is None:
            raise RunFailed(f"step {self.state.step}: {problem}, before the first checkpoint; lower optim.lr")
        samples, rollbacks, step = self.state.samples, self.state.rollbacks + 1, self.state.step
        self._restore(checkpoint)
        self.state = replace(self.state, samples=samples, rollbacks=rollbacks)
        self.evaluations = [(step, loss) for step, loss in self.evaluations if step <= self.state.step]
        self._forget_after(self.state.step)
        self.spikes.after_rollback()
        self._record_event(
            "rollback", f"step {step}: {problem}; back to step {self.state.step}, skipping those samples"
        )
        self.timers = StepTimers()

    def _is_finished(self) -> bool:
        """The last step is done, or the validation loss has not fallen for `patience` evaluations."""
        patience = self.plan.patience
        if self.state.step >= self.plan.max_steps:
            return True
        losses = [loss if math.isfinite(loss) else math.inf for _, loss in self.evaluations]
        return 0 < patience < len(losses) and min(losses[:-patience]) <= min(losses[-patience:])

    def _evaluate_if_due(self) -> str | None:
        """Evaluate if this step is to be and was not; return the signal that stopped it, if one did.

        The last step's evaluation comes after the loop, on the full validation split.
        """
        if not self._is_evaluation_due():
            return None
        return self.stop.now() if self.evaluate(self.plan.eval.tokens) is None else None

    def _is_evaluation_due(self) -> bool:
        step = self.state.step
        is_due = 0 < step < self.plan.max_steps and _is_due(step, self.plan.eval.every)
        return is_due and step not in [evaluated for evaluated, _ in self.evaluations]

    def _draw_sample(self) -> None:
        """Have rank 0 write a sample of the run's prompt; every rank takes part in gathering the weights."""
        sampler = self.plan.sampler
        if sampler is None:
            return
        weights = self.full_weights()
        if self.env.is_main:
            text = sampler.draw(weights, self.env.device)
            write_eval_sample(self.plan.run, EvalSample(self.state.step, self.tokens_seen, sampler.prompt, text))
            log_text(self.env.accelerator, SAMPLE, text, self.state.step)
        self.watchdog.heartbeat()

    def _log_step(self, step: TrainStep) -> None:
        accelerator = self.env.accelerator
        seconds = torch.tensor([self.timers.seconds_to_all_reduce], device=self.env.device)
        record = step_metrics(
            self.plan,
            self.state,
            step,
            self._mean_loss(step),
            self.timers.fractions(),
            accelerator.gather(seconds).tolist(),
            peak_memory_mib(self.env.device),
        )
        if self.env.is_main:
            append_metrics(self.plan.run, record)
        accelerator.log(tracked_values(record), step=record.step)
        self.progress.show_metrics(record)
        self.timers = StepTimers()

    def _mean_loss(self, step: TrainStep) -> float:
        return float(self.env.accelerator.reduce(step.loss_sum, "sum")) / max(1, step.num_target_tokens)

    def _record_event(self, kind: str, text: str) -> None:
        if self.env.is_main:
            append_metrics(self.plan.run, EventMetrics(self.state.step, self.tokens_seen, kind, text))
        log_event(self.env.accelerator, kind, text, self.state.step)
        self.progress.show(text)

    def _select_newest(self) -> Checkpoint | None:
        return select_checkpoint(self.storage, newest_valid_checkpoint, self.env, self.progress.show)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.backend.load_state(CheckpointTensors(checkpoint))
        if checkpoint.state.loss_scale is not None:
            self.backend.set_loss_scale(checkpoint.state.loss_scale)
        self.state = checkpoint.state
        self.writer.saved_step = checkpoint.state.step

    def _forget_after(self, step: int) -> None:
        """Drop what was logged of later steps, which will be done again."""
        if not self.env.is_main:
            return
        for text in changed_logs(self.plan.run, self.state.logs):
            self.progress.show(text)
        for name in (METRICS_FILE, SAMPLES_FILE):
            dropped = cut_back(self.plan.run / name, step)
            if dropped:
                self.progress.show(
                    f"{self.plan.run / name}: {dropped} damaged line{'' if dropped == 1 else 's'} dropped"
                )

    def _report_stop(self, stopped_by: str) -> None:
        """Say where a stopped run is.

        Raises:
            RunFailed: the checkpoint of the last step done could not be saved.
        """
        step, saved = self.state.step, self.writer.saved_step or 0
        # The writer is rank 0's; all ranks end alike.
        is_saved = torch.tensor(int(saved == step), device=self.env.device) * self.env.is_main
        if int(self.env.accelerator.reduce(is_saved, "sum")) == 0:
            raise RunFailed(
                f"stopped by {stopped_by} after step {step}, whose checkpoint could not be saved: the newest is of "
                f"step {saved}; make room and run again to resume from there"
            )
        text = f"stopped by {stopped_by} after step {step}; run again to resume from step {step}"
        log_event(self.env.accelerator, "stop", text, step)
        self.progress.show(text)

    def _wait_for_writer(self) -> None:
        self.writer.wait()
        self._show_problems()
        self.env.accelerator.wait_for_everyone()

    def _show_problems(self) -> None:
        self.writer.poll()
        while self.writer.problems:
            self.progress.show(self.writer.problems.pop(0))

    def _report_hang(self) -> None:
        report_hang(self.plan.run / HANG_FOLDER, self.env.dims, self.env.device)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _seed_dropout(seed: int, first_sample: int) -> None:
    """Make dropout a function of the samples, so that neither a resume nor the number of ranks changes it."""
    torch.manual_seed(
        int.from_bytes(blake2b(repr((seed, first_sample)).encode(), digest_size=8).digest(), "little") >> 1
    )
