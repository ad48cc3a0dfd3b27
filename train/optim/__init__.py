"""Optimizers and learning rate schedules, by the names that settings give them."""

from malmoi.registry import Registry
from malmoi.train.optim import adamw, muon
from malmoi.train.optim.lr_schedule import SCHEDULES
from malmoi.train.optim.param_roles import ModelParameter
from malmoi.train.optim.spec import OptimizerSpec

OPTIMIZERS: Registry[OptimizerSpec] = Registry({"adamw": adamw.SPEC, "muon": muon.SPEC})

__all__ = ["OPTIMIZERS", "SCHEDULES", "ModelParameter", "OptimizerSpec"]
