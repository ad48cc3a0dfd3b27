"""What a rank of many holds at the peak of a step, counted without a GPU and without the other ranks.

    python benchmarks/fake_ranks.py                                   # all presets, on 8 and 64 ranks
    python benchmarks/fake_ranks.py --presets gpt3-13b --ranks 8

Each backend runs as in training, on rank 0 of torch's fake process group and on fake tensors, which have shapes and no
memory: three micro-batches of a sample each in bf16, with AdamW's moments there from the start. Live bytes are counted
at each operation and compared with what `malmoi train --dry_run` computes. DeepSpeed does not run on fake tensors.
"""

import argparse
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import malmoi
from malmoi.train.backends import BackendInputs, fsdp
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.distributed.parallel_dims import ParallelDims
from malmoi.train.memory import state_size
from malmoi.train.models import SpecialTokenIds, cross_entropy
from malmoi.train.models.compute import configure_compute
from malmoi.train.models.spec import padded_vocabulary

MICRO_BATCHES = 3
PRESETS = (
    *("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl"),
    *("gpt3-small", "gpt3-medium", "gpt3-large", "gpt3-xl", "gpt3-2.7b", "gpt3-6.7b", "gpt3-13b"),
)
RANKS = (8, 64)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and keeps what was alive at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._serials: dict[int, int] = {}
        """Numbers of the storages that are alive, by their addresses, which others take when they are freed."""
        self._sizes: dict[int, int] = {}
        self._at_peak: dict[int, int] | None = {}
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self.note(each)
        return result

    def note(self, tensor: Tensor) -> int:
        """Count the storage of `tensor`, or of this rank's part of it, until it is freed; return its number."""
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        address = int(storage._cdata)
        if address not in self._serials:
            self._count += 1
            self._serials[address] = self._count
            weakref.finalize(storage, self._free, address)
        self._set(self._serials[address], storage.nbytes())
        return self._serials[address]

    def at_peak(self, numbers: Iterable[int]) -> int:
        """Return the bytes of the storages of those numbers when most was alive."""
        self._keep_peak()
        assert self._at_peak is not None
        return sum(self._at_peak.get(number, 0) for number in set(numbers))

    def _free(self, address: int) -> None:
        self._set(self._serials.pop(address), 0)

    def _set(self, number: int, size: int) -> None:
        before = self._sizes.get(number, 0)
        if size < before:
            self._keep_peak()
        self._sizes[number] = size
        if not size:
            del self._sizes[number]
        self.now += size - before
        if self.now > self.peak:
            self.peak, self._at_peak = self.now, None

    def _keep_peak(self) -> None:
        if self._at_peak is None:
            self._at_peak = dict(self._sizes)

    @contextmanager
    def following_resizes(self) -> Iterator[None]:
        """Count storages anew that FSDP2 empties and fills."""
        original = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            if storage._cdata in self._serials:
                self._set(self._serials[storage._cdata], size)
            return result

        torch.UntypedStorage.resize_ = resize
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = original


@dataclass(frozen=True)
class Layout:
    """How a model is laid over the ranks."""

    name: str
    backend: str
    checkpointing: bool = False
    replicated: bool = False
    """A copy of the model every eight ranks."""

    def __str__(self) -> str:
        return self.name


LAYOUTS = (
    Layout("ddp", "ddp"),
    Layout("fsdp2", "fsdp2"),
    Layout("fsdp2 + checkpointing", "fsdp2", checkpointing=True),
    Layout("hsdp", "fsdp2", replicated=True),
    Layout("hsdp + checkpointing", "fsdp2", checkpointing=True, replicated=True),
)
RANKS_OF_A_COPY = 8
"""Under HSDP: those of a node, or half of them where there is one node."""


@dataclass(frozen=True)
class Counted:
    """Bytes on a rank when they are most."""

    weights: int
    gradients: int
    moments: int
    rest: int
    """Activations, and what is gathered and reduced for the moment."""
    computed_state: int
    """What `--dry_run` says of weights, gradients and moments."""
    computed_rest: int

    @property
    def counted(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.moments + self.rest

    @property
    def computed(self) -> int:
        """What `--dry_run` says of all."""
        return self.computed_state + self.computed_rest


class FakeAccelerator:
    """Of Accelerate, what the backends ask. DDP's reducer reads memory, so it is left out: its buckets are the
    gradients, which are there anyway."""

    device = torch.device("cpu")

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        return model

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Do nothing: gradients add up."""
        return nullcontext()


def count(settings: malmoi.RunSettings, layout: Layout, ranks: int) -> Counted:
    """Return the live bytes at the peak of a step on rank 0."""
    spec, shape, vocab_size = malmoi.MODELS["gpt2"], settings.model, settings.tokenizer.vocab_size
    train = replace(settings.train, activation_checkpointing=layout.checkpointing)
    dims = ParallelDims(0, ranks, max(2, ranks // RANKS_OF_A_COPY) if layout.replicated else 1)
    accelerator: Any = FakeAccelerator()
    env = DistEnv(accelerator, layout.backend, "bf16", read_launch_env({}), dims)
    live = LiveBytes()
    with _fake_group(env), _loss_of_a_gpu(), FakeTensorMode(allow_non_fake_inputs=True):
        model = spec.build(spec.config(shape, padded_vocabulary(vocab_size), SpecialTokenIds(0, None, 0, None)))
        # Another precision would choose the attention of a CPU, which computes in 32 bits.
        configure_compute(model, spec.blocks(model), train, "fp32", document_mask=False)
        model.lm_head.chunk_loss = _chunk_loss
        # Fake tensors cannot be swapped for others on the same device.
        object.__setattr__(model, "to", lambda device: model)
        with live, live.following_resizes():
            backend: Any = malmoi.BACKENDS[layout.backend].build(
                BackendInputs(env, model, spec, settings.optim, 1, MICRO_BATCHES)
            )
            parameters = list(model.parameters())
            for parameter in parameters:
                live.note(parameter)
                keys = malmoi.OPTIMIZERS[settings.optim.name].state_keys
                backend._optimizer.state[parameter] = {key: torch.zeros_like(parameter) for key in keys}
            ids = torch.zeros(1, shape.block_size, dtype=torch.long)
            gradients: set[int] = set()
            for number in range(MICRO_BATCHES):
                with backend.micro_batch(number == MICRO_BATCHES - 1):
                    with backend.autocast():
                        loss_sum = backend.model(ids, ids, vocab_size)
                    backend.backward(loss_sum, ids.numel())
                del loss_sum
                gradients |= {live.note(each) for each in _gradients(model)}
            moments = [each for state in backend._optimizer.state.values() for each in state.values()]
            weight_bytes = live.at_peak(live.note(each) for each in parameters)
            gradient_bytes = live.at_peak(gradients)
            moment_bytes = live.at_peak(live.note(each) for each in moments)
    size = state_size(spec, shape, vocab_size, settings.optim.name)
    return Counted(
        weight_bytes,
        gradient_bytes,
        moment_bytes,
        live.peak - weight_bytes - gradient_bytes - moment_bytes,
        size.bytes_a_device(layout.backend, dims.shard_size, half=True),
        size.gathered_bytes(layout.backend, half=True)
        + spec.activation_bytes(shape, vocab_size, train, 1, True, "cuda"),
    )


def _gradients(model: nn.Module) -> Iterator[Tensor]:
    """Yield the gradients between two micro-batches, those too that FSDP2 has yet to reduce between replicas."""
    yield from (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                if group._partial_reduce_output is not None:
                    yield group._partial_reduce_output


def _chunk_loss(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Take the memory of `triton_chunk_loss`: it overwrites the logits by their gradient."""
    return logits.new_zeros((), dtype=torch.float32), logits


@contextmanager
def _fake_group(env: DistEnv) -> Iterator[None]:
    """Have a process group in which nothing is sent, and a mesh of its ranks, which fake tensors cannot make."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=env.dims.dp_size)
    made, original = fsdp.device_mesh(env), fsdp.device_mesh
    fsdp.device_mesh = lambda env: made
    try:
        yield
    finally:
        fsdp.device_mesh = original
        distributed.destroy_process_group()


@contextmanager
def _loss_of_a_gpu() -> Iterator[None]:
    """Have the loss compute as many positions at once as on a GPU."""
    sizes = cross_entropy.CHUNK_ELEMENTS
    before = sizes["cpu"]
    sizes["cpu"] = sizes["cuda"]
    try:
        yield
    finally:
        sizes["cpu"] = before


def main() -> int:
    """Print a table, and return 1 where more is counted than computed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--layouts", nargs="+", default=[layout.name for layout in LAYOUTS])
    options = parser.parse_args()
    print("GiB on a rank       ranks  layout                  weights  gradients  moments     rest  counted  computed")
    is_more = False
    for preset in options.presets:
        settings = malmoi.load_config(preset)
        for ranks in options.ranks:
            for layout in [each for each in LAYOUTS if each.name in options.layouts]:
                seen = count(settings, layout, ranks)
                shown = (seen.weights, seen.gradients, seen.moments, seen.rest, seen.counted, seen.computed)
                numbers = "".join(f"{value / 2**30:9.2f}" for value in shown)
                is_more |= seen.counted > seen.computed
                flag = "  MORE" if seen.counted > seen.computed else ""
                print(f"{preset:19} {ranks:5}  {layout.name:22}{numbers}{flag}", flush=True)
    return int(is_more)


if __name__ == "__main__":
    sys.exit(main())
