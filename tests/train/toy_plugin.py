"""A plugin as a user writes one: an entry for each registry, a tracker and two hooks, from outside the package.

With TOY_KILL_AT=N in the environment it ends the process by SIGKILL after step N.
"""

import json
import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import malmoi
from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings, ScheduleSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings
from malmoi.data_prep.pipeline.mixture import SourceShards
from malmoi.errors import UserError
from malmoi.train.backends import StepResult
from malmoi.train.backends.ddp import ReplicatedBackend
from malmoi.train.data.dataset import TokenDataset
from malmoi.train.data.document_mask import Batch
from malmoi.train.models import ModelSpec, SpecialTokenIds
from malmoi.train.models.cross_entropy import plain_loss_sum
from malmoi.train.models.spec import IGNORE_INDEX, sampling_config
from malmoi.train.optim import ModelParameter, OptimizerSpec
from malmoi.train.optim.lr_schedule import ScheduleProgress
from malmoi.train.tasks.language_modeling import LanguageModeling
from malmoi.train.trainer import Trainer


class MomentumSGD(torch.optim.Optimizer):
    """Gradient descent with momentum and its bias correction; state: `velocity`, and the number of steps `updates`."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Step all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["velocity"], state["updates"] = torch.zeros_like(parameter), torch.zeros(())
                state["updates"] += 1
                state["velocity"].lerp_(parameter.grad, 1 - group["momentum"])
                correction = 1 - group["momentum"] ** float(state["updates"])
                parameter.add_(state["velocity"], alpha=-group["lr"] / correction)


def build_momentum_sgd(
    parameters: Sequence[ModelParameter], settings: OptimSettings, device: torch.device
) -> MomentumSGD:
    """Make it over a model's parameters, the embeddings with twice the learning rate."""
    groups: list[dict[str, Any]] = [
        {"params": [p.tensor for p in parameters if p.role == "embedding"], "lr_factor": 2.0},
        {"params": [p.tensor for p in parameters if p.role != "embedding"]},
    ]
    return MomentumSGD(groups, settings.lr, settings.betas[0])


malmoi.OPTIMIZERS["momentum_sgd"] = OptimizerSpec(
    build=build_momentum_sgd,
    state_keys=frozenset({"velocity"}),
    scalar_keys=frozenset({"updates"}),
    state_bytes=lambda parameters, matrices: 4 * parameters,
)


def sawtooth(progress: ScheduleProgress, settings: ScheduleSettings) -> float:
    """Fall to a half in every five steps."""
    return 1 - 0.125 * (progress.step % 5)


malmoi.SCHEDULES["sawtooth"] = sawtooth


class TrainingLlama(LlamaForCausalLM):  # type: ignore[misc]  # transformers is untyped
    """A stock Llama that computes the loss."""

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        vocab_size: int | None = None,
        positions: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Return what `LlamaForCausalLM` does; or, given targets, their loss sum."""
        if targets is None:
            return super().forward(input_ids, **inputs)
        assert vocab_size is not None
        logits = super().forward(input_ids, position_ids=positions, use_cache=False, **inputs).logits
        return plain_loss_sum(logits, targets, vocab_size)


def llama_config(shape: ModelSettings, vocab_size: int, special: SpecialTokenIds) -> LlamaConfig:
    """Return the configuration of `shape`."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.n_embd,
        intermediate_size=2 * shape.n_embd,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        max_position_embeddings=shape.block_size,
        attention_dropout=shape.dropout,
        tie_word_embeddings=True,
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        pad_token_id=special.pad,
    )


def llama_blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the decoder layers."""
    layers: Sequence[nn.Module] = model.model.layers  # type: ignore[union-attr,assignment]
    return layers


def llama_param_groups(model: nn.Module) -> list[ModelParameter]:
    """Return the trainable parameters with their roles."""
    return [
        ModelParameter(
            name, tensor, "embedding" if "embed_tokens" in name else "matrix" if tensor.dim() == 2 else "other"
        )
        for name, tensor in model.named_parameters()
    ]


def llama_num_matrix_params(shape: ModelSettings) -> int:
    """Return the parameters in matrices: attention's four, and three of the MLP."""
    return shape.n_layer * 10 * shape.n_embd**2


def llama_num_params(shape: ModelSettings, vocab_size: int) -> int:
    """Return all parameters: the matrices, the tied embedding and the norms."""
    return llama_num_matrix_params(shape) + vocab_size * shape.n_embd + (2 * shape.n_layer + 1) * shape.n_embd


def llama_activation_bytes(
    shape: ModelSettings, vocab_size: int, train: TrainSettings, micro_batch_size: int, half: bool, device_type: str
) -> int:
    """Estimate, roughly, what a forward pass keeps."""
    return micro_batch_size * shape.block_size * (64 * shape.n_layer * shape.n_embd + 12 * vocab_size)


def not_from_a_folder(*_: Any) -> Any:
    """Refuse `--init_from`."""
    raise UserError("init_from: the toy Llama trains from random weights only; leave it out")


def llama_to_hf(
    weights: Mapping[str, Tensor], config: LlamaConfig, vocab_size: int, special: SpecialTokenIds
) -> LlamaForCausalLM:
    """Return the trained model as a plain `LlamaForCausalLM`, without padding rows."""
    model = LlamaForCausalLM(LlamaConfig(**{**config.to_diff_dict(), "vocab_size": vocab_size}))
    trimmed = {name: tensor.detach().float().cpu() for name, tensor in weights.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        trimmed[name] = trimmed["model.embed_tokens.weight"][:vocab_size].clone()
    model.load_state_dict(trimmed)
    model.generation_config = sampling_config(special)
    return model


malmoi.MODELS["toy_llama"] = ModelSpec(
    config=llama_config,
    build=TrainingLlama,
    blocks=llama_blocks,
    param_groups=llama_param_groups,
    num_params=llama_num_params,
    num_matrix_params=llama_num_matrix_params,
    flops_per_token=lambda shape, vocab_size: 6.0 * llama_num_params(shape, vocab_size),
    activation_bytes=llama_activation_bytes,
    check_hf=not_from_a_folder,
    shape_of_hf=not_from_a_folder,
    hf_size=not_from_a_folder,
    from_hf=not_from_a_folder,
    to_hf=llama_to_hf,
)


class HalfStepBackend(ReplicatedBackend):
    """Steps at half the learning rate."""

    def step(self, lr: float) -> StepResult:
        """Step at half of `lr`."""
        return super().step(lr / 2)


malmoi.BACKENDS["half_step"] = replace(malmoi.BACKENDS["single"], build=HalfStepBackend)


@dataclass(frozen=True)
class SecondHalf(LanguageModeling):
    """Language modeling whose loss is that of the second half of each sample."""

    def num_target_tokens(self, first_sample: int, count: int) -> int:
        """Return half of the tokens."""
        return count * (self.sample_tokens // 2)

    def read(self, first_sample: int, count: int) -> Batch:
        """Return samples without targets in their first half."""
        batch = super().read(first_sample, count)
        targets = batch.targets.copy()
        targets[:, : self.sample_tokens // 2] = IGNORE_INDEX
        return replace(batch, targets=targets)


def build_second_half(
    settings: RunSettings, dataset: TokenDataset, sources: Sequence[SourceShards], vocab_size: int, max_steps: int
) -> SecondHalf:
    """Return the task of a run."""
    plain = malmoi.TASKS["language_modeling"](settings, dataset, sources, vocab_size, max_steps)
    assert isinstance(plain, LanguageModeling)
    return SecondHalf(**vars(plain))


malmoi.TASKS["second_half"] = build_second_half


class TarStorage:
    """Each folder is a tar file `NAME.tar`, renamed into place."""

    def __init__(self, url: str) -> None:
        self._root = Path(url.removeprefix("toy://"))
        self._extracted = tempfile.TemporaryDirectory(prefix="toy-")

    def place(self, name: str) -> str:
        """Return where a folder is."""
        return f"toy://{self._root / name}"

    def names(self) -> list[str]:
        """Return the names of all folders."""
        return [file.stem for file in self._root.glob("*.tar")]

    def write(self, name: str, num_bytes: int, fill: Callable[[Path], None]) -> None:
        """Have `fill` write a folder, and store it."""
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root) as folder:
            fill(Path(folder))
            unfinished = self._root / f"{name}.unfinished"
            with tarfile.open(unfinished, "w") as tar:
                for file in sorted(Path(folder).iterdir()):
                    tar.add(file, file.name)
            unfinished.rename(self._root / f"{name}.tar")

    def open(self, name: str) -> Path:
        """Extract a folder."""
        folder = Path(self._extracted.name) / name
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(self._root / f"{name}.tar") as tar:
            tar.extractall(folder, filter="data")
        return folder

    def read_file(self, name: str, file: str) -> bytes:
        """Return one file of a folder."""
        return (self.open(name) / file).read_bytes()

    def delete(self, name: str) -> None:
        """Delete a folder."""
        (self._root / f"{name}.tar").unlink()

    def clean_up(self) -> None:
        """Delete what a killed process left."""
        for file in self._root.glob("*.unfinished"):
            file.unlink()


malmoi.STORAGES["toy"] = TarStorage


class LinesTracker(GeneralTracker):  # type: ignore[misc]  # accelerate is untyped
    """Writes what it gets to a file, a JSON line each."""

    name = "lines"
    requires_logging_directory = False

    def __init__(self, run_name: str, file: str) -> None:
        super().__init__()
        self._run_name, self._file = run_name, Path(file)

    @property
    def tracker(self) -> Any:
        """What is written to."""
        return self._file

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Write the run's name and configuration."""
        self._write({"run": self._run_name, "config": values})

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Write the values of a step."""
        self._write({"step": step, "values": values})

    def _write(self, record: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def log_norm(trainer: Trainer) -> None:
    """Log the norm of the weights, which every rank takes part in gathering."""
    tensors = trainer.backend.state_tensors()
    squares = [float(tensor.square().sum()) for name, tensor in tensors if name.startswith("model.")]
    trainer.log("toy/norm", sum(squares) ** 0.5)


def log_samples(trainer: Trainer) -> None:
    """Log the number of samples."""
    trainer.log("toy/samples", trainer.state.samples)


def kill(trainer: Trainer) -> None:
    """End the process where the environment says so."""
    if trainer.state.step == int(os.environ["TOY_KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)


def setup_trainer(trainer: Trainer) -> None:
    """Add the hooks; called before training."""
    trainer.add_hook(log_norm, every=2)
    trainer.add_hook(log_samples, every=4)
    if "TOY_KILL_AT" in os.environ:
        trainer.add_hook(kill)
