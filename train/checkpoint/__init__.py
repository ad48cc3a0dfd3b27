"""Checkpoints: format, storage, asynchronous writing, resume."""

from malmoi.train.checkpoint.storage import STORAGES, Storage

__all__ = ["STORAGES", "Storage"]
