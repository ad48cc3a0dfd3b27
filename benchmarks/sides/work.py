"""What every side of a comparison is told: the model's shape, the batch, the data, and how to compute.

Imports no torch, so that a side's start is its own.
"""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Work:
    """One model on one file of tokens. Passed to a side's process as JSON."""

    layers: int
    width: int
    vocab: int
    block: int
    batch: int
    tokens: str
    """File of uint16 tokens: the first training shard's `.bin`."""
    config: str
    """YAML of the same run for `malmoi train`."""
    device: str
    """cpu or cuda."""
    precision: str
    """fp32 or bf16."""
    compile: bool

    @property
    def heads(self) -> int:
        """Of 64 channels each, as in every GPT-2."""
        return max(1, self.width // 64)

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding where a side pads them to a multiple of 64, as nanoGPT and Malmoi do."""
        return -(-self.vocab // 64) * 64

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def read_work(text: str) -> Work:
    return Work(**json.loads(text))
