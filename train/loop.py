"""The training loop: next batch, forward, backward, step, log, evaluate, save."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import GPT2LMHeadModel

from configs.errors import BadInput
from configs.schema import TrainSettings
from inference.score import Nats, Score, Windows, nats_of_windows, score_of
from train.blocks import HeldOutPart, SampleReader
from train.checkpoint import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    Checkpoint,
    CheckpointNotSavedError,
    Progress,
    delete_older,
    load_tensors,
    newest_whole_checkpoint,
    optimizer_tensors,
    save_checkpoint,
    set_optimizer_tensors,
)
from train.display import TrainingDisplay
from train.metrics import HeldOutMetrics, StepMetrics, append_metrics, drop_metrics_after
from train.model import EMBEDDING, OUTPUT_MATRIX
from train.objective import batch_nats
from train.optim import learning_rate, new_optimizer
from train.signals import StopRequest
from train.throughput import peak_memory_mib


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know, all of it checked."""

    run: Path
    train: TrainSettings
    samples: SampleReader
    held_out: HeldOutPart | None
    data_fingerprint: str
    vocab_size: int
    steps: int
    flops_per_token: float
    peak_flops: float
    """Of one device."""


@dataclass(frozen=True)
class Outcome:
    """How the loop ended."""

    progress: Progress
    stopped_by: str | None
    """The signal that ended it early, if one did."""
    score: Score | None
    """Over the whole held-out part, where the run is complete and there is one."""


def accumulation_steps(settings: TrainSettings, ranks: int) -> int:
    """Micro-batches a rank computes in one update.

    Raises:
        BadInput: micro-batch x ranks does not divide the global batch.
    """
    together = settings.micro_batch * ranks
    if together < 1 or settings.global_batch < 1 or settings.global_batch % together:
        raise BadInput(
            f"train.global_batch {settings.global_batch} is no multiple of train.micro_batch {settings.micro_batch} "
            f"x {ranks} ranks = {together}; change one of them"
        )
    return settings.global_batch // together


class Training:
    """One rank's model and optimiser on their way through `Plan.steps` updates."""

    def __init__(self, plan: Plan, model: GPT2LMHeadModel, accelerator: Accelerator, display: TrainingDisplay) -> None:
        self.plan, self.accelerator, self.display = plan, accelerator, display
        self.accumulation = accumulation_steps(plan.train, accelerator.num_processes)
        self.checkpoints = plan.run / "checkpoints"
        checkpoint = self._newest_checkpoint()
        if checkpoint is not None:
            weights = load_tensors(checkpoint.folder / MODEL_FILE)
            model.load_state_dict({**weights, OUTPUT_MATRIX: weights[EMBEDDING]})
        optimizer = new_optimizer(model, plan.train, accelerator.device)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare_model = model
        self.progress = Progress(0, 0, 0, plan.data_fingerprint, {})
        self._targets = 0
        if checkpoint is not None:
            self._go_on_from(checkpoint)

    def run(self, stop: StopRequest) -> Outcome:
        """Train until the last step or a stop signal; either way the last step done is in a checkpoint."""
        settings, plan = self.plan.train, self.plan
        self.display.start(self.progress.step, plan.steps)
        saved_step = self.progress.step
        log = Interval()
        while self.progress.step < plan.steps:
            nats, rate, norm = self.update(log)
            self.display.step(self.progress.step)
            last = self.progress.step == plan.steps
            if last or self.progress.step % settings.log_every == 0:
                self._log(nats, rate, norm, log)
                log = Interval()
            stopped_by = self._agreed_stop(stop)
            if not last and stopped_by is None and _is_due(self.progress.step, settings.evaluate_every):
                self._evaluate(settings.evaluate_tokens)
                log = Interval()
            if last or stopped_by is not None or _is_due(self.progress.step, settings.save_every):
                saved_step = self.progress.step if self._save() else saved_step
                log = Interval()
            if stopped_by is not None and not last:
                self.display.note(
                    f"stopped by {stopped_by} after step {self.progress.step}; "
                    f"run again to go on from step {saved_step}"
                )
                return Outcome(self.progress, stopped_by, None)
        return Outcome(self.progress, None, self._evaluate(None))

    def update(self, log: "Interval") -> tuple[torch.Tensor, float, torch.Tensor]:
        """One step; returns this rank's summed nats, the learning rate and the gradient's norm before clipping."""
        rate = self._set_learning_rate()
        nats = self._forward_and_backward(log)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress = replace(
            self.progress,
            step=self.progress.step + 1,
            samples=self.progress.samples + self.plan.train.global_batch,
            skipped_steps=self.progress.skipped_steps + int(self.accelerator.optimizer_step_was_skipped),
        )
        log.steps += 1
        return nats, rate, norm

    def _newest_checkpoint(self) -> Checkpoint | None:
        checkpoint, faults = newest_whole_checkpoint(self.checkpoints)
        for fault in faults:
            self.display.note(f"passed over a damaged checkpoint: {fault}")
        if checkpoint is not None and checkpoint.progress.data_fingerprint != self.plan.data_fingerprint:
            raise BadInput(
                f"{checkpoint.folder}: trained on shards {checkpoint.progress.data_fingerprint[:12]}, the corpus and "
                f"settings now give {self.plan.data_fingerprint[:12]}; restore them or choose another --run"
            )
        return checkpoint

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        tensors = load_tensors(checkpoint.folder / OPTIMIZER_FILE)
        set_optimizer_tensors(self.bare_model, self.optimizer.optimizer, tensors)
        self.progress = checkpoint.progress
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        if self.accelerator.is_main_process:
            drop_metrics_after(self.plan.run, self.progress.step)
        self.display.note(f"going on from step {self.progress.step} ({checkpoint.folder})")

    def _set_learning_rate(self) -> float:
        done = self.progress.step - self.progress.skipped_steps
        rate = learning_rate(done, self.plan.steps, self.plan.train)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _forward_and_backward(self, log: "Interval") -> torch.Tensor:
        """Gradients of the mean loss over the global batch; returns this rank's summed nats."""
        settings, accelerator = self.plan.train, self.accelerator
        self._targets = self.plan.samples.targets(self.progress.samples, settings.global_batch)
        total = torch.zeros((), device=accelerator.device)
        for number in range(self.accumulation):
            micro_batch = number * accelerator.num_processes + accelerator.process_index
            first = self.progress.samples + micro_batch * settings.micro_batch
            began = time.perf_counter()
            batch = self.plan.samples.read(first, settings.micro_batch)
            log.waiting += time.perf_counter() - began
            _seed_dropout(settings.seed, first)
            is_last = number == self.accumulation - 1
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                nats = batch_nats(self.model, batch, self.plan.vocab_size, accelerator.device, settings.attention)
                # Accelerate's ranks average their gradients: the factor makes that the mean over all targets.
                accelerator.backward(nats * (accelerator.num_processes / max(1, self._targets)))
            total += nats.detach()
        return total

    def _clip(self) -> torch.Tensor:
        limit = self.plan.train.clip_norm or float("inf")
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return norm

    def _log(self, nats: torch.Tensor, rate: float, norm: torch.Tensor, log: "Interval") -> None:
        block_size = self.plan.samples.block_size
        tokens_a_step = self.plan.train.global_batch * block_size
        loss = float(self.accelerator.reduce(nats, "sum")) / max(1, self._targets)
        seconds = time.perf_counter() - log.began
        speed = log.steps * tokens_a_step / seconds
        line = StepMetrics(
            step=self.progress.step,
            tokens=self.progress.samples * block_size,
            loss=loss,
            lr=rate,
            grad_norm=float(norm),
            tokens_per_second=speed,
            mfu=speed * self.plan.flops_per_token / (self.plan.peak_flops * self.accelerator.num_processes),
            data_wait=log.waiting / seconds,
            memory=peak_memory_mib(self.accelerator.device),
            skipped_steps=self.progress.skipped_steps,
        )
        if self.accelerator.is_main_process:
            append_metrics(self.plan.run, line)
        tracked = {"loss": line.loss, "lr": line.lr, "grad_norm": line.grad_norm, "tokens_per_second": speed}
        self.accelerator.log(tracked, step=line.step)
        self.display.metrics(line)

    def _agreed_stop(self, stop: StopRequest) -> str | None:
        """The signal that any rank has seen, the same answer on all of them."""
        if self.accelerator.num_processes == 1:
            return stop.signal_name
        heard = torch.tensor(int(stop.signal_name is not None), device=self.accelerator.device)
        if int(self.accelerator.reduce(heard, "sum")) == 0:
            return None
        return stop.signal_name or "a signal to another rank"

    @torch.no_grad()
    def _evaluate(self, most_tokens: int | None) -> Score | None:
        """Score the held-out part, up to `most_tokens` of it, the windows dealt out to the ranks."""
        if self.plan.held_out is None:
            return None
        block_size = self.plan.samples.block_size
        stream = self.plan.held_out.stream
        windows = Windows(len(stream), block_size, block_size)
        count = len(windows) if most_tokens is None else min(len(windows), max(1, most_tokens // block_size))
        numbers = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        device = self.accelerator.device
        self.bare_model.eval()
        with self.accelerator.autocast():
            own = nats_of_windows(
                lambda ids: self.bare_model(input_ids=ids, use_cache=False).logits,
                stream,
                windows,
                numbers,
                self.plan.train.micro_batch,
                self.plan.vocab_size,
                device,
            )
        self.bare_model.train()
        summed = self.accelerator.reduce(
            torch.tensor([own.nats, own.tokens], dtype=torch.float64, device=device), "sum"
        )
        score = score_of(Nats(float(summed[0]), int(summed[1])), len(stream), self.plan.held_out.counts.bytes)
        line = HeldOutMetrics(
            step=self.progress.step,
            tokens=self.progress.samples * block_size,
            held_out_loss=score.loss,
            perplexity=score.perplexity,
            bits_per_byte=score.bits_per_byte,
            held_out_tokens=score.tokens,
        )
        if self.accelerator.is_main_process:
            append_metrics(self.plan.run, line)
        self.accelerator.log({"held_out_loss": score.loss, "bits_per_byte": score.bits_per_byte}, step=line.step)
        self.display.held_out(line)
        return score

    def _save(self) -> bool:
        """Write a checkpoint, and say on rank 0 whether the disk took it."""
        saved = True
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            progress = replace(self.progress, scaler={} if scaler is None else dict(scaler.state_dict()))
            # The output matrix is the embedding: it is stored once.
            weights = {name: t for name, t in self.bare_model.state_dict().items() if name != OUTPUT_MATRIX}
            try:
                save_checkpoint(
                    self.checkpoints, progress, weights, optimizer_tensors(self.bare_model, self.optimizer.optimizer)
                )
            except CheckpointNotSavedError as error:
                self.display.note(str(error))
                saved = False
            else:
                delete_older(self.checkpoints, self.plan.train.keep_last)
        self.accelerator.wait_for_everyone()
        return saved


class Interval:
    """What is counted between two logged steps."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.steps = 0
        self.waiting = 0.0


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _seed_dropout(seed: int, first_sample: int) -> None:
    """Make dropout a function of the samples, so that neither a new start nor the world size changes it."""
    torch.manual_seed(
        int.from_bytes(blake2b(repr((seed, first_sample)).encode(), digest_size=8).digest(), "little") >> 1
    )
