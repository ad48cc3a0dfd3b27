"""Settings of shards, and of the samples that are read from them."""

from dataclasses import dataclass
from typing import Literal

from malmoi.configs.ranges import ClosedUnitInterval, HalfOpenUnitInterval, PositiveInt

SharedFilesystem = bool | Literal["auto"]
ExecutorName = Literal["local", "dask", "slurm"] | str


@dataclass(frozen=True)
class ShardSettings:
    """How text becomes shards: the validation split, the shard size, and where the work runs."""

    val_fraction: HalfOpenUnitInterval = 0.01
    """Fraction of documents, chosen by hash of their text, that goes to the validation split."""
    shard_tokens: PositiveInt = 268_435_456
    """Tokens in a shard."""
    workers: PositiveInt | None = None
    """Worker processes, or jobs with executor slurm; null: one a core, or one job. Does not change the bytes."""
    executor: ExecutorName = "local"
    """Where encoding runs: local processes, a Dask cluster (dask), or dask-jobqueue jobs on Slurm (slurm)."""
    scheduler: str | None = None
    """Address of the Dask scheduler, for executor dask."""
    shared_filesystem: SharedFilesystem = "auto"
    """Whether all nodes see the same shard folder. true: node 0 builds and the others must see it; else the first
    node to take the lock builds."""


@dataclass(frozen=True)
class DataSettings(ShardSettings):
    """The shards, and how samples are read from them."""

    cache: str | None = None
    """Folder where shard folders are built and shared between runs; null: `shards` in the run folder."""
    document_mask: bool = False
    """Restrict attention to the token's own document, and restart positions at each document."""
    seq_len_warmup: ClosedUnitInterval = 0.0
    """Fraction of all steps, from the first, in which each sample is read as four of a quarter of its length."""
