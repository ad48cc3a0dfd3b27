"""Bytes that training takes, on the device and on the disk, by arithmetic alone and without torch."""

from typing import get_args

from configs.schema import ModelSettings, OptimizerName, Sharding, TrainSettings
from train.size import padded_vocabulary, parameter_count

SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)
LOSS_CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
"""Logits of a chunk of the loss: few enough for a processor's cache, enough to keep a GPU busy."""
FEWEST_LOSS_POSITIONS = 256
"""Of a chunk of the loss: the gradient of the whole output matrix is read and written once a chunk."""
TILE = 64
"""Positions of a chunk are a multiple of it: matrix units multiply whole tiles."""


def loss_positions(vocab_size: int, device_type: str) -> int:
    """Positions of a chunk of `train.chunked_loss`."""
    most = LOSS_CHUNK_ELEMENTS["cpu" if device_type == "cpu" else "cuda"] // vocab_size
    return max(FEWEST_LOSS_POSITIONS, most // TILE * TILE)


def moment_bytes(model: ModelSettings, vocab_size: int, optimizer: OptimizerName) -> int:
    """Bytes of the optimiser's moments: AdamW's two a parameter in fp32, Muon's one for the matrices of the blocks."""
    parameters = parameter_count(model, padded_vocabulary(vocab_size))
    matrices = 12 * model.n_layer * model.n_embd**2 if optimizer == "muon" else 0
    return 8 * parameters - 4 * matrices


def state_bytes(
    model: ModelSettings, vocab_size: int, optimizer: OptimizerName, sharding: Sharding, ranks: int, half: bool
) -> int:
    """Bytes of weights, gradients and optimiser on one of `ranks` devices.

    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (2020), section 5: in
    16 bits DeepSpeed keeps weights and gradients in 2 bytes each and an fp32 copy of the weights with the optimiser;
    in 32 bits, and without DeepSpeed, they are 4 and 4. Stage 1 shards the optimiser, 2 gradients too, 3 all.
    """
    parameters = parameter_count(model, padded_vocabulary(vocab_size))
    moments = moment_bytes(model, vocab_size, optimizer)
    if sharding in ("single", "ddp"):
        return 8 * parameters + moments
    if sharding in ("zero3", "fsdp2"):
        return -(-(8 * parameters + moments) // ranks)
    low = 2 if half else 4
    optimiser = moments + (4 * parameters if half else 0)
    kept = low * parameters * (2 if sharding == "zero1" else 1)
    shared = optimiser + (0 if sharding == "zero1" else low * parameters)
    return kept + -(-shared // ranks)


def activation_bytes(
    model: ModelSettings, vocab_size: int, train: TrainSettings, micro_batch: int, half: bool, device_type: str
) -> int:
    """Bytes that a forward pass keeps for the backward pass on one device, an estimate.

    Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022), section 4: in 16 bits
    34 bytes a token, layer and channel, and 5 for each attention weight, which fused kernels do not keep. With
    activation checkpointing a block's input alone, and one block in full. Of the loss, the gradients of the output
    matrix and of its input, and a chunk's logits: in their own precision, and on a processor in fp32 and as a
    gradient beside them.
    """
    scale = 1 if half else 2
    tokens = micro_batch * model.block_size
    block = 34 * scale * tokens * model.n_embd
    if train.attention == "eager":
        block += 5 * scale * tokens * model.block_size * model.n_head
    if train.activation_checkpointing:
        blocks = model.n_layer * 2 * scale * tokens * model.n_embd + block
    else:
        blocks = model.n_layer * block
    chunk = min(tokens, loss_positions(vocab_size, device_type)) * vocab_size
    logits = (2 * scale + (8 if device_type == "cpu" else 0)) * chunk
    gradients = 4 * model.n_embd * padded_vocabulary(vocab_size) + 2 * scale * tokens * model.n_embd
    return blocks + logits + gradients


def checkpoint_bytes(model: ModelSettings, vocab_size: int, optimizer: OptimizerName) -> int:
    """Bytes of one checkpoint: fp32 weights, the tied embedding once, and the optimiser's moments."""
    return 4 * parameter_count(model, padded_vocabulary(vocab_size)) + moment_bytes(model, vocab_size, optimizer)


def model_bytes(model: ModelSettings, vocab_size: int) -> int:
    """Bytes of the exported model in fp32."""
    return 4 * parameter_count(model, vocab_size)
