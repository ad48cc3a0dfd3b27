"""Train Korean language models from raw text: the same steps as on the command line, from Python.

    import malmoi

    config = malmoi.load_config("demo", run="runs/demo", train={"max_steps": 200})
    result = malmoi.train(config)  # builds tokenizer and shards first, unless they are there
    [text] = malmoi.generate(result.model, "이순신", num_return_sequences=1)[0].samples

Importing this package is cheap: each name is imported when it is first used, and torch with the first that needs it.
The registries (`OPTIMIZERS`, `MODELS`, ...) map the names that settings give to what they build; add an entry to extend
one.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from malmoi.api import TrainResult, finetune, open_dataset, prepare, train, train_tokenizer
    from malmoi.configs.finetune import FinetuneSettings
    from malmoi.configs.parser import load_config, load_finetune_config
    from malmoi.configs.run import RunSettings
    from malmoi.data_prep.pipeline.executors import EXECUTORS
    from malmoi.data_prep.readers import READERS, ReaderSpec
    from malmoi.data_prep.readers.errors import RecordError
    from malmoi.data_prep.readers.source_file import open_bytes, open_text
    from malmoi.errors import RunFailed, RunStopped, UserError
    from malmoi.evaluation.evaluate import evaluate
    from malmoi.evaluation.fewshot.run import fewshot
    from malmoi.inference.generate import generate
    from malmoi.inference.model_folder import load_model
    from malmoi.train.backends import BACKENDS, BackendSpec
    from malmoi.train.checkpoint import STORAGES, Storage
    from malmoi.train.finetune_result import FinetuneResult
    from malmoi.train.models import MODELS, ModelSpec
    from malmoi.train.optim import OPTIMIZERS, SCHEDULES, OptimizerSpec
    from malmoi.train.tasks import TASKS, Task

__version__ = "0.1.0"

__all__ = [
    "BACKENDS",
    "EXECUTORS",
    "MODELS",
    "OPTIMIZERS",
    "READERS",
    "SCHEDULES",
    "STORAGES",
    "TASKS",
    "BackendSpec",
    "FinetuneResult",
    "FinetuneSettings",
    "ModelSpec",
    "OptimizerSpec",
    "ReaderSpec",
    "RecordError",
    "RunFailed",
    "RunSettings",
    "RunStopped",
    "Storage",
    "Task",
    "TrainResult",
    "UserError",
    "evaluate",
    "fewshot",
    "finetune",
    "generate",
    "load_config",
    "load_finetune_config",
    "load_model",
    "open_bytes",
    "open_dataset",
    "open_text",
    "prepare",
    "train",
    "train_tokenizer",
]

_MODULES = {
    "malmoi.api": ("TrainResult", "finetune", "open_dataset", "prepare", "train_tokenizer"),
    "malmoi.configs.finetune": ("FinetuneSettings",),
    "malmoi.configs.parser": ("load_config", "load_finetune_config"),
    "malmoi.configs.run": ("RunSettings",),
    "malmoi.data_prep.pipeline.executors": ("EXECUTORS",),
    "malmoi.data_prep.readers": ("READERS", "ReaderSpec"),
    "malmoi.data_prep.readers.errors": ("RecordError",),
    "malmoi.data_prep.readers.source_file": ("open_bytes", "open_text"),
    "malmoi.errors": ("RunFailed", "RunStopped", "UserError"),
    "malmoi.evaluation.evaluate": ("evaluate",),
    "malmoi.evaluation.fewshot.run": ("fewshot",),
    "malmoi.inference.generate": ("generate",),
    "malmoi.inference.model_folder": ("load_model",),
    "malmoi.train.backends": ("BACKENDS", "BackendSpec"),
    "malmoi.train.checkpoint": ("STORAGES", "Storage"),
    "malmoi.train.finetune_result": ("FinetuneResult",),
    "malmoi.train.models": ("MODELS", "ModelSpec"),
    "malmoi.train.optim": ("OPTIMIZERS", "SCHEDULES", "OptimizerSpec"),
    "malmoi.train.tasks": ("TASKS", "Task"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'malmoi' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallableTrain(ModuleType):
    """The subpackage `malmoi.train`, which is the function `malmoi.train` too."""

    def __call__(self, config: "RunSettings") -> "TrainResult":
        """See `malmoi.api.train`."""
        result: TrainResult = importlib.import_module("malmoi.api").train(config)
        return result


# Importing a subpackage makes it an attribute of its parent, in place of a function of the same name.
importlib.import_module("malmoi.train").__class__ = _CallableTrain
