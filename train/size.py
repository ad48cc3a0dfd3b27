"""What a run's settings come to, by arithmetic alone and without torch."""

import math

from configs.errors import BadInput
from configs.schema import ModelSettings, TrainSettings

VOCABULARY_MULTIPLE = 64


def padded_vocabulary(vocab_size: int) -> int:
    """`vocab_size` rounded up to a multiple of 64, which matrix units like; the extra rows never leave training."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def parameter_count(settings: ModelSettings, vocab_size: int) -> int:
    """Trainable numbers of the exported model; the output matrix is the embedding and counts once."""
    width = settings.n_embd
    block = 12 * width * width + 13 * width
    return (vocab_size + settings.block_size) * width + settings.n_layer * block + 2 * width


def planned_steps(settings: TrainSettings, samples_per_epoch: int) -> int:
    """Updates that a whole run makes: `steps`, or as many as `epochs` gives, and at least one.

    Raises:
        BadInput: `steps`, `epochs` or `global_batch` is below 1, or not above 0.
    """
    for name in ("steps", "epochs", "global_batch"):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise BadInput(f"train.{name} {value}: choose a number above 0")
    if settings.steps is not None:
        return settings.steps
    return max(1, math.ceil(settings.epochs * samples_per_epoch / settings.global_batch))


def accumulation_steps(global_batch: int, micro_batch: int, ranks: int) -> int:
    """Micro-batches a rank computes in one update.

    Raises:
        BadInput: micro-batch x ranks does not divide the global batch.
    """
    together = micro_batch * ranks
    if together < 1 or global_batch < 1 or global_batch % together:
        raise BadInput(
            f"train.global_batch {global_batch} is no multiple of train.micro_batch {micro_batch} "
            f"x {ranks} ranks = {together}; change one of them"
        )
    return global_batch // together
