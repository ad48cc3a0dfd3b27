"""Models whose weights are made later, one at a time, bit for bit as they would have been.

A process that holds a shard of a model needs neither memory for all of it nor another sequence of random numbers: while
a model is built, what would be written into its tensors is recorded, and random numbers are drawn and dropped, so that
the generator is where it would be. Each tensor is made when it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.initialization import TORCH_INIT_FUNCTIONS

ATEN = torch.ops.aten
FACTORIES = frozenset({ATEN.empty.memory_format, ATEN.zeros.default, ATEN.ones.default, ATEN.full.default})
"""What makes a tensor without reading another."""
OVERWRITING = frozenset({ATEN.normal_.default, ATEN.uniform_.default, ATEN.zero_.default, ATEN.fill_.Scalar})
"""What leaves nothing of what the tensor held before."""
TORCH_TRUNC_NORMAL = nn.init._no_grad_trunc_normal_
NOT_RECORDED = {"dirac_": nn.init.dirac_, "orthogonal_": nn.init.orthogonal_, "sparse_": nn.init.sparse_}


@torch.library.custom_op("malmoi::trunc_normal_", mutates_args=("tensor",), tags=torch.Tag.nondeterministic_seeded)
def trunc_normal_(tensor: Tensor, mean: float, std: float, a: float, b: float) -> None:
    """Do what `torch.nn.init.trunc_normal_` does, as an operation of torch's, which can be recorded."""
    TORCH_TRUNC_NORMAL(tensor, mean, std, a, b)


def _recorded_trunc_normal(
    tensor: Tensor, mean: float, std: float, a: float, b: float, generator: torch.Generator | None = None
) -> Tensor:
    assert generator is None, "of another generator than torch's own nothing is recorded"
    with torch.no_grad():
        trunc_normal_(tensor, mean, std, a, b)
    return tensor


def _refuse(name: str, *args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(
        f"torch.nn.init.{name}: its result cannot be made later, so the model trains only with a backend that holds "
        "all of it: single, ddp, zero1 or zero2"
    )


@dataclass(frozen=True)
class _Write:
    """An operation whose result has no memory yet."""

    number: int
    """How many were recorded before it."""
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    written: Tensor
    """On the meta device."""
    is_result: bool
    """Whether the operation returns it, and does not write into an argument."""
    generator: Tensor | None
    """State of torch's generator, where the operation draws random numbers."""

    @property
    def overwrites_all(self) -> bool:
        """Whether nothing is left of what was there before."""
        size = self.written.numel() * self.written.element_size()
        return self.function in OVERWRITING and size == self.written.untyped_storage().nbytes()


class DeferredInit(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook is untyped
    """While it is active, tensors on the CPU get no memory: they are on the meta device, and writes are recorded.

    What depends on a value that is not there, as `item` does, is torch's error for the meta device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._writes: dict[int, list[_Write]] = {}
        """By the address of a storage, which each of its writes keeps alive."""
        self._count = 0
        self._scratch = torch.empty(0, dtype=torch.uint8)
        """Where random numbers are drawn to be dropped: one place, since between many the records would leave holes."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            if torch.device(kwargs.get("device") or "cpu").type != "cpu":
                return func(*args, **kwargs)
            result = func(*args, **{**kwargs, "device": "meta", "pin_memory": None})
            self._record(func, args, kwargs, result, True, None)
            return result
        read = [each for each in tree_leaves((args, kwargs)) if self._is_deferred(each)]
        if not read:
            return func(*args, **kwargs)
        generator = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            generator = torch.get_rng_state()
            func(*self._replaced(args, self._scratch_like), **self._replaced(kwargs, self._scratch_like))
        result = func(*args, **kwargs)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and self._is_deferred(value):
                self._record(func, args, kwargs, value, False, generator)
        if isinstance(result, Tensor) and not self._is_deferred(result):
            self._record(func, args, kwargs, result, True, generator)
        return result

    def __enter__(self) -> "DeferredInit":
        super().__enter__()  # type: ignore[no-untyped-call]
        # On the meta device these do nothing, without a word.
        nn.init._no_grad_trunc_normal_ = _recorded_trunc_normal
        for name in NOT_RECORDED:
            setattr(nn.init, name, partial(_refuse, name))
            TORCH_INIT_FUNCTIONS[name] = partial(_refuse, name)
        return self

    def __exit__(self, *exception: Any) -> None:
        nn.init._no_grad_trunc_normal_ = TORCH_TRUNC_NORMAL
        for name, function in NOT_RECORDED.items():
            setattr(nn.init, name, function)
            TORCH_INIT_FUNCTIONS[name] = function
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def make(self, module: nn.Module) -> None:
        """Give the parameters and buffers of `module` that have no memory yet their values, on the CPU; what is shared
        within it stays shared. To be called when the mode is no longer active."""
        made: dict[int, Tensor] = {}
        for part in module.modules():
            tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for held in tables:
                for name, tensor in held.items():
                    if tensor is None or not self._is_deferred(tensor):
                        continue
                    if id(tensor) not in made:
                        value = self.value(tensor)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
                    held[name] = made[id(tensor)]

    @torch.no_grad()
    def value(self, tensor: Tensor) -> Tensor:
        """Return what `tensor` would hold, on the CPU."""
        return self._value(tensor, self._count)

    def _value(self, tensor: Tensor, count: int) -> Tensor:
        """Return what `tensor` would have held after `count` operations."""
        if not self._is_deferred(tensor):
            return tensor
        address = _address(tensor)
        storage = torch.empty(tensor.untyped_storage().nbytes() // tensor.element_size(), dtype=tensor.dtype)

        def in_storage(view: Tensor) -> Tensor:
            return storage.as_strided(view.size(), view.stride(), view.storage_offset())

        writes = [write for write in self._writes[address] if write.number < count]
        first = max((number for number, write in enumerate(writes) if write.overwrites_all), default=0)
        for write in writes[first:]:

            def value(other: Tensor, number: int = write.number) -> Tensor:
                return in_storage(other) if _address(other) == address else self._value(other, number)

            args, kwargs = self._replaced(write.args, value), self._replaced(write.kwargs, value)
            with torch.random.fork_rng(devices=()):
                if write.generator is not None:
                    torch.set_rng_state(write.generator)
                result = write.function(*args, **kwargs)
            if write.is_result:
                in_storage(write.written).copy_(result)
        return in_storage(tensor)

    def _record(
        self, func: Any, args: Any, kwargs: Any, written: Tensor, is_result: bool, generator: Tensor | None
    ) -> None:
        write = _Write(self._count, func, args, kwargs, written, is_result, generator)
        self._writes.setdefault(_address(written), []).append(write)
        self._count += 1

    def _scratch_like(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        if len(self._scratch) < size:
            self._scratch = self._scratch[:0].clone()
            self._scratch = torch.empty(size, dtype=torch.uint8)
        return self._scratch[:size].view(tensor.dtype).view(tensor.shape).zero_()

    def _is_deferred(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_meta and _address(value) in self._writes

    def _replaced(self, values: Any, replace: Callable[[Tensor], Tensor]) -> Any:
        return tree_map_only(Tensor, lambda each: replace(each) if self._is_deferred(each) else each, values)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
