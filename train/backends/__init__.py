"""How a model and its optimizer are laid over the ranks, by the names that settings give it."""

from malmoi.registry import Registry
from malmoi.train.backends import ddp, fsdp
from malmoi.train.backends.base import Backend, BackendInputs, BackendSpec, StepResult
from malmoi.train.backends.zero import zero_spec

BACKENDS: Registry[BackendSpec] = Registry(
    {
        "single": ddp.SPEC,
        "ddp": ddp.SPEC,
        "zero1": zero_spec(1),
        "zero2": zero_spec(2),
        "zero3": zero_spec(3),
        "fsdp2": fsdp.SPEC,
    }
)

__all__ = ["BACKENDS", "Backend", "BackendInputs", "BackendSpec", "StepResult"]
