"""The training loop: next batch, forward, backward, step, log, evaluate, save."""

import math
from dataclasses import replace
from hashlib import blake2b

import torch
from torch import Tensor

from configs.errors import RunFailed
from train.backend import Backend
from train.checkpoint import (
    Checkpoint,
    CheckpointTensors,
    Progress,
    best_whole_checkpoint,
    checkpoint_folders,
    mend_leftovers,
    newest_whole_checkpoint,
)
from train.display import TrainingDisplay
from train.divergence import DivergenceWatch
from train.interval import Interval
from train.metrics import EventMetrics, append_metrics, drop_look_at, drop_metrics_after, read_metrics
from train.optim import learning_rate
from train.parallel import Placement
from train.parameter_tensors import WEIGHT
from train.plan import LoggedUpdate, Outcome, Plan
from train.profiling import traced
from train.read_ahead import ReadAhead
from train.resuming import agreed_checkpoint, check_goes_on
from train.run_folder import CHECKPOINTS_FOLDER
from train.samples import LookSample, drop_samples_after, write_sample
from train.saving import CheckpointWriter, SavePolicy
from train.signals import StopRequest
from train.step_line import step_line, tracked
from train.stopping import StopAgreement
from train.task import Look
from train.throughput import peak_memory_mib
from train.watch import Watchdog


class Training:
    """One rank on its way through `Plan.steps` updates, from the newest whole checkpoint."""

    def __init__(self, plan: Plan, backend: Backend, placement: Placement, display: TrainingDisplay) -> None:
        self.plan, self.backend, self.display = plan, backend, display
        self.accelerator = placement.accelerator
        self.checkpoints = plan.run / CHECKPOINTS_FOLDER
        settings = plan.train
        self.writer = CheckpointWriter(
            SavePolicy(self.checkpoints, settings.keep_last, settings.keep_best, settings.asynchronous_save)
        )
        self.divergence = DivergenceWatch(settings.divergence)
        self.watchdog = Watchdog(plan.hang_seconds)
        self.samples = ReadAhead(plan.task, plan.micro_batch)
        self.interval = Interval()
        self.stopping = StopAgreement(StopRequest(), self.accelerator)
        self.progress = Progress(0, 0, 0, 0, plan.data_fingerprint, None, None, None)
        self.unsettled: LoggedUpdate | None = None
        """The last update, as long as the host has not asked what became of it."""
        self.looks: list[tuple[int, float]] = []
        """Steps at which held-out data was looked at, and its loss there."""
        self._go_on()

    def run(self, stop: StopRequest) -> Outcome:
        """Train until the last step or a stop signal; either way the last step done is in a checkpoint.

        Raises:
            RunFailed: loss or gradient went wrong beyond mending, or a stopped run could not be saved.
        """
        self.stopping = StopAgreement(stop, self.accelerator)
        self.display.start(self.progress.step, self.plan.steps)
        self.interval = Interval()
        with self.watchdog:
            stopped_by = self._steps()
            look = None
            if self.progress.step == self.plan.steps:
                look = self._evaluate(None)
                stopped_by = self.stopping.now() if look is None else None
                if look is not None and self.plan.train.keep_best:
                    # So that the last step too is among those that the best is chosen of.
                    self._save(wait=True)
        if stopped_by is not None:
            self._tell_stop(stopped_by)
        return Outcome(self.progress, stopped_by, look)

    def take_best(self) -> int:
        """Take over the weights of the whole checkpoint with the lowest held-out loss, or else of the newest, and
        return its step; every rank must ask.

        Raises:
            RunFailed: no checkpoint is whole.
        """
        best = agreed_checkpoint(self.checkpoints, best_whole_checkpoint, self.accelerator, self.display.note)
        if best is None:
            raise RunFailed(f"{self.checkpoints}: no checkpoint is whole; delete the folder and train again")
        self._take_over(best)
        return best.progress.step

    def update(self) -> LoggedUpdate | None:
        """One step; none where this one or the one before went wrong, and training is back at a checkpoint.

        What became of an update is asked for when the next one's gradients are on their way, so that the device has
        work meanwhile; earlier where something needs it.

        Raises:
            RunFailed: it went wrong beyond mending.
        """
        nats, targets = self._forward_and_backward()
        if not self._settled():
            return None
        done = self.progress.step - self.progress.skipped_steps
        rate = learning_rate(done, self.plan.steps, self.plan.train)
        tried_at = self.backend.loss_scale()
        update = self.backend.update(rate)
        self.watchdog.beat()
        self.progress = replace(
            self.progress,
            step=self.progress.step + 1,
            samples=self.progress.samples + self.plan.train.global_batch,
            loss_scale=self.backend.loss_scale(),
            held_out_loss=None,
        )
        self.interval.end_step()
        self.display.step(self.progress.step)
        logged = self.unsettled = LoggedUpdate(nats, targets, rate, update.norm, tried_at)
        waits = self.divergence.wants_losses or not update.is_late
        return None if waits and not self._settled() else logged

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights by parameter name on the CPU, on rank 0; every rank must ask."""
        weights = {}
        for name, tensor in self.backend.tensors():
            if not name.startswith(f"{WEIGHT}."):
                break  # moments, which come after all weights
            if self.accelerator.is_main_process:
                weights[name.removeprefix(f"{WEIGHT}.")] = tensor.cpu()
        return weights

    def _steps(self) -> str | None:
        """Steps until the last one, or until a signal, which is returned; either way the last step done is saved."""
        plan, settings = self.plan, self.plan.train
        # A signal may have come before the look at this step was taken, or in its midst.
        stopped_by = self._look_if_due()
        while not self._is_over() and stopped_by is None:
            with traced(plan.run, self.progress.step + 1, settings.profile, self.accelerator.process_index):
                update = self.update()
            if update is None:
                continue
            heard = self.stopping.answer()
            step = self.progress.step
            logs = step == plan.steps or _is_due(step, settings.log_every)
            saves = _is_due(step, settings.save_every)
            if (logs or saves or heard or self._look_is_due()) and not self._settled():
                continue
            if logs:
                self._log(update)
            stopped_by = heard or self._look_if_due()
            ends = self._is_over() or stopped_by is not None
            if ends or saves:
                self._save(wait=ends)
            self._show_problems()
        return stopped_by

    def _tell_stop(self, stopped_by: str) -> None:
        """Say where a stopped run stands.

        Raises:
            RunFailed: the disk did not take the checkpoint of the last step done.
        """
        accelerator, step = self.accelerator, self.progress.step
        saved = self.writer.saved_step or 0
        # The writer is rank 0's; all ranks end alike.
        is_saved = torch.tensor(int(saved == step), device=accelerator.device) * accelerator.is_main_process
        if int(accelerator.reduce(is_saved, "sum")) == 0:
            raise RunFailed(
                f"stopped by {stopped_by} after step {step}, whose checkpoint could not be saved: the newest is of "
                f"step {saved}; make room and run again to go on from there"
            )
        self.display.note(f"stopped by {stopped_by} after step {step}; run again to go on from step {step}")

    def _go_on(self) -> None:
        if self.accelerator.is_main_process:
            mend_leftovers(self.checkpoints)
        checkpoint = self._newest_checkpoint()
        if checkpoint is None:
            if self.accelerator.is_main_process and checkpoint_folders(self.checkpoints):
                self.display.note("no checkpoint is whole: beginning anew")
            self._forget_after(0)
            return
        check_goes_on(checkpoint, self.plan)
        self._take_over(checkpoint)
        self.divergence.restore(checkpoint.progress.divergence)
        self.progress = replace(self.progress, data_fingerprint=self.plan.data_fingerprint)
        # Rank 0 may cut the file back at this moment: what is later than the checkpoint counts for nobody.
        seen = read_metrics(self.plan.run).looks
        self.looks = [(line.step, line.held_out_loss) for line in seen if line.step <= self.progress.step]
        self._forget_after(self.progress.step)
        changes = "".join(f"; {change.text}" for change in self.plan.changes)
        self._record_event("restart", f"going on from step {self.progress.step} ({checkpoint.folder}){changes}")

    def _forget_after(self, step: int) -> None:
        """Drop what was written down of later steps, which will be done again."""
        if self.accelerator.is_main_process:
            drop_metrics_after(self.plan.run, step)
            drop_samples_after(self.plan.run, step)

    def _is_over(self) -> bool:
        """The last step is done, or the held-out loss has not fallen for `Plan.patience` looks."""
        if self.progress.step >= self.plan.steps:
            return True
        losses = [loss if math.isfinite(loss) else math.inf for _, loss in self.looks]
        return 0 < self.plan.patience < len(losses) and min(losses[: -self.plan.patience]) <= min(
            losses[-self.plan.patience :]
        )

    def _newest_checkpoint(self) -> Checkpoint | None:
        return agreed_checkpoint(self.checkpoints, newest_whole_checkpoint, self.accelerator, self.display.note)

    def _take_over(self, checkpoint: Checkpoint) -> None:
        self.backend.load(CheckpointTensors(checkpoint))
        if checkpoint.progress.loss_scale is not None:
            self.backend.set_loss_scale(checkpoint.progress.loss_scale)
        self.progress = checkpoint.progress
        self.writer.saved_step = checkpoint.progress.step

    def _forward_and_backward(self) -> tuple[Tensor, int]:
        """Gradients of the mean loss over the global batch; returns this rank's summed nats, and all ranks' targets."""
        plan, accelerator = self.plan, self.accelerator
        targets = plan.task.targets(self.progress.samples, plan.train.global_batch)
        total = torch.zeros((), device=accelerator.device)
        for number in range(plan.accumulation):
            micro_batch = number * accelerator.num_processes + accelerator.process_index
            first = self.progress.samples + micro_batch * plan.micro_batch
            with self.interval.waiting_for_data():
                batch = self.samples.take(first)
            _seed_dropout(plan.train.seed, first)
            is_last = number == plan.accumulation - 1
            with self.backend.micro_batch(is_last):
                with self.backend.autocast():
                    nats = plan.task.nats(self.backend.model, batch, accelerator.device)
                if is_last:
                    self.interval.reached_exchange()
                    # Travels while the backward pass computes.
                    self.stopping.ask()
                self.backend.backward(nats, max(1, targets))
            total += nats.detach()
            self.samples.read_while(accelerator.device, first + accelerator.num_processes * plan.micro_batch)
        return total, targets

    def _settled(self) -> bool:
        """Wait for the last update and see to what became of it; false where training is back at a checkpoint."""
        update, self.unsettled = self.unsettled, None
        if update is None:
            return True
        skipped = not math.isfinite(update.norm.value())
        self.progress = replace(self.progress, skipped_steps=self.progress.skipped_steps + int(skipped))
        wrong = self._divergence(update, skipped)
        if wrong is not None:
            self._go_back(wrong)
        return wrong is None

    def _divergence(self, update: LoggedUpdate, skipped: bool) -> str | None:
        tried_at = update.loss_scale
        if skipped and tried_at is not None:
            if tried_at.is_exhausted:
                raise RunFailed(
                    f"step {self.progress.step}: fp16's loss scale is at its minimum of {tried_at.scale:g} and the "
                    "gradient is still not finite: lower train.learning_rate, or use bf16 or fp32"
                )
            return None
        loss = self._mean_loss(update) if self.divergence.wants_losses else None
        return self.divergence.verdict(loss, skipped)

    def _go_back(self, wrong: str) -> None:
        """To the newest checkpoint, but on with the samples after those that went wrong."""
        self._wait_for_writer()
        allowed = self.plan.train.divergence.rollbacks
        if self.progress.rollbacks >= allowed:
            raise RunFailed(
                f"step {self.progress.step}: {wrong}, after {allowed} rollbacks; lower train.learning_rate, in "
                "another --run if its checkpoints have gone wrong too, or look at the data around sample "
                f"{self.progress.samples}"
            )
        checkpoint = self._newest_checkpoint()
        if checkpoint is None:
            raise RunFailed(
                f"step {self.progress.step}: {wrong}, before the first checkpoint; lower train.learning_rate"
            )
        samples, rollbacks, step = self.progress.samples, self.progress.rollbacks + 1, self.progress.step
        self._take_over(checkpoint)
        self.progress = replace(self.progress, samples=samples, rollbacks=rollbacks)
        self.looks = [(step, loss) for step, loss in self.looks if step <= self.progress.step]
        self._forget_after(self.progress.step)
        self.divergence.after_rollback()
        self._record_event("rollback", f"step {step}: {wrong}; back to step {self.progress.step}, past those samples")
        self.interval = Interval()

    def _record_event(self, kind: str, text: str) -> None:
        if self.accelerator.is_main_process:
            tokens = self.progress.samples * self.plan.task.sample_tokens
            append_metrics(self.plan.run, EventMetrics(self.progress.step, tokens, kind, text))
        self.display.note(text)

    def _mean_loss(self, update: LoggedUpdate) -> float:
        return float(self.accelerator.reduce(update.nats, "sum")) / max(1, update.targets)

    def _log(self, update: LoggedUpdate) -> None:
        accelerator = self.accelerator
        seconds = torch.tensor([self.interval.seconds_to_exchange], device=accelerator.device)
        line = step_line(
            self.plan,
            self.progress,
            update,
            self._mean_loss(update),
            self.interval.shares(),
            accelerator.gather(seconds).tolist(),
            peak_memory_mib(accelerator.device),
        )
        if accelerator.is_main_process:
            append_metrics(self.plan.run, line)
        accelerator.log(tracked(line), step=line.step)
        self.display.metrics(line)
        self.interval = Interval()

    def _evaluate(self, most_tokens: int | None) -> Look | None:
        """Look at held-out data, up to `most_tokens` of it; none where there is none or a signal broke it off."""
        plan = self.plan

        def go_on() -> bool:
            self.watchdog.beat()
            return self.stopping.now() is None

        step = self.progress.step
        with self.interval.evaluating():
            look = plan.task.look(self.backend, self.accelerator, plan.micro_batch, most_tokens, go_on)
            if look is None:
                return None
            self._draw_sample()
        self.progress = replace(self.progress, held_out_loss=look.held_out_loss)
        if step in [taken_at for taken_at, _ in self.looks]:
            # By a process that was killed before it could say that the run is done.
            self.looks = [earlier for earlier in self.looks if earlier[0] != step]
            if self.accelerator.is_main_process:
                drop_look_at(plan.run, step)
        self.looks.append((step, look.held_out_loss))
        if self.accelerator.is_main_process:
            append_metrics(plan.run, look.line(step, self.progress.samples * plan.task.sample_tokens))
        self.accelerator.log(look.figures(), step=step)
        self.display.note(f"step {step}  {look.text()}")
        return look

    def _draw_sample(self) -> None:
        """Have rank 0 write down what the model makes of the run's prompt; every rank takes part in gathering it."""
        sampler = self.plan.sampler
        if sampler is None:
            return
        weights = self.whole_weights()
        if self.accelerator.is_main_process:
            text = sampler.draw(weights, self.accelerator.device)
            tokens = self.progress.samples * self.plan.task.sample_tokens
            write_sample(self.plan.run, LookSample(self.progress.step, tokens, sampler.prompt, text))
        self.watchdog.beat()

    def _look_if_due(self) -> str | None:
        """Take the look that this step asks for, if it was not taken before; the signal that broke it off, if one did.

        The last step's is another: it comes after the loop, at all of the held-out part.
        """
        if not self._look_is_due():
            return None
        look = self._evaluate(self.plan.train.evaluate_tokens)
        return self.stopping.now() if look is None else None

    def _look_is_due(self) -> bool:
        step = self.progress.step
        is_due = 0 < step < self.plan.steps and _is_due(step, self.plan.train.evaluate_every)
        return is_due and step not in [taken_at for taken_at, _ in self.looks]

    def _save(self, wait: bool) -> None:
        """Have rank 0 write a checkpoint; every rank takes part in gathering it."""
        self.progress = replace(self.progress, divergence=self.divergence.state())
        with self.interval.saving():
            self.watchdog.beat()
            if self.accelerator.is_main_process:
                self.writer.save(self.progress, self.backend.tensors())
            else:
                for _ in self.backend.tensors():
                    pass
            if wait:
                self._wait_for_writer()

    def _wait_for_writer(self) -> None:
        self.writer.wait()
        self._show_problems()
        self.accelerator.wait_for_everyone()

    def _show_problems(self) -> None:
        self.writer.poll()
        while self.writer.problems:
            self.display.note(self.writer.problems.pop(0))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _seed_dropout(seed: int, first_sample: int) -> None:
    """Make dropout a function of the samples, so that neither a new start nor the world size changes it."""
    torch.manual_seed(
        int.from_bytes(blake2b(repr((seed, first_sample)).encode(), digest_size=8).digest(), "little") >> 1
    )
