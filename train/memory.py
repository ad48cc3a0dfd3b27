"""Estimates of the bytes that training takes on devices and on disk."""

from dataclasses import dataclass, replace

from malmoi.configs.model import ModelSettings
from malmoi.configs.train import BackendName
from malmoi.registry import registry_entry
from malmoi.train.backends import BACKENDS
from malmoi.train.models import ModelSpec
from malmoi.train.models.spec import padded_vocabulary
from malmoi.train.optim import OPTIMIZERS


@dataclass(frozen=True)
class StateSize:
    """Sizes of the training model and its optimizer."""

    parameters: int
    """Trainable, with the padded vocabulary."""
    optimizer_bytes: int
    block_parameters: int
    """Of one transformer block."""
    other_parameters: int
    """Outside the blocks: embeddings and the last norm."""

    @property
    def checkpoint_bytes(self) -> int:
        """Of fp32 weights, a tied embedding once, and the optimizer's state."""
        return 4 * self.parameters + self.optimizer_bytes

    def bytes_a_device(self, backend: BackendName, ranks: int, half: bool) -> int:
        """Return the bytes of weights, gradients and optimizer on one of `ranks` devices.

        Args:
            half: whether the forward pass computes in 16 bits.
        """
        spec = registry_entry(BACKENDS, "parallel.backend", backend)
        return spec.state_bytes(self.parameters, self.optimizer_bytes, ranks, half)

    def gathered_bytes(self, backend: BackendName, half: bool) -> int:
        """Return the most bytes that a device holds besides, and besides activations, while it computes: weights that
        are gathered or rounded for it, and gradients that are being reduced."""
        spec = registry_entry(BACKENDS, "parallel.backend", backend)
        return spec.gathered_bytes(self.block_parameters, self.other_parameters, self.parameters, half)

    def peak_bytes(self, backend: BackendName, ranks: int, half: bool) -> int:
        """Return `bytes_a_device` and `gathered_bytes`: all that a device holds but activations.

        Args:
            ranks: that share one copy of the model.
        """
        return self.bytes_a_device(backend, ranks, half) + self.gathered_bytes(backend, half)


def state_size(spec: ModelSpec, shape: ModelSettings, vocab_size: int, optimizer: str) -> StateSize:
    """Return the sizes of a model of this shape.

    Args:
        vocab_size: without padding.
        optimizer: its name in `OPTIMIZERS`.
    """
    parameters = spec.num_params(shape, padded_vocabulary(vocab_size))
    state_bytes = registry_entry(OPTIMIZERS, "optim.name", optimizer).state_bytes
    blocks = [spec.num_params(replace(shape, n_layer=n_layer), padded_vocabulary(vocab_size)) for n_layer in (1, 2)]
    block = blocks[1] - blocks[0]
    return StateSize(
        parameters, state_bytes(parameters, spec.num_matrix_params(shape)), block, parameters - shape.n_layer * block
    )
