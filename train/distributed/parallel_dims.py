"""Data-parallel rank and size: the one place that says which samples a rank computes, and which ranks share a model."""

from dataclasses import dataclass, replace

from malmoi.errors import UserError
from malmoi.ranks import counted_ranks


@dataclass(frozen=True)
class ParallelDims:
    """This rank's place among the data-parallel ranks, which compute different samples of one batch."""

    dp_rank: int
    dp_size: int
    replicas: int = 1
    """Copies of the model, each sharded over `shard_size` ranks with consecutive numbers."""

    @property
    def shard_size(self) -> int:
        """Ranks over which a copy of the model is sharded, where the backend shards."""
        return self.dp_size // self.replicas

    def with_replicas(self, replicas: int) -> "ParallelDims":
        """Return the same ranks with so many copies of the model.

        Raises:
            UserError: they do not divide the ranks.
        """
        if self.dp_size % replicas:
            raise UserError(
                f"parallel.replicas {replicas} does not divide {counted_ranks(self.dp_size)}; set it to the number of "
                "nodes, or leave it at 1"
            )
        return replace(self, replicas=replicas)

    def micro_batch_index(self, accumulation_step: int) -> int:
        """Which of a global batch's micro-batches this rank computes: number m goes to rank m mod `dp_size`, so that
        the micro-batches are the same at any size."""
        return accumulation_step * self.dp_size + self.dp_rank

    def accumulation_steps(self, global_batch_size: int, micro_batch_size: int) -> int:
        """Micro-batches that a rank computes in one optimizer step.

        Raises:
            UserError: micro-batch x ranks does not divide the global batch.
        """
        together = micro_batch_size * self.dp_size
        if global_batch_size % together:
            raise UserError(
                f"train.global_batch_size {global_batch_size} is no multiple of train.micro_batch_size "
                f"{micro_batch_size} x {counted_ranks(self.dp_size)} = {together}; change one of them, or set "
                "train.micro_batch_size auto"
            )
        return global_batch_size // together
