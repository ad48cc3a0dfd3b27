"""A model's parameters by what optimizers treat differently."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Role = Literal["matrix", "embedding", "other"]


@dataclass(frozen=True)
class ModelParameter:
    """A trainable parameter, and what an optimizer needs to know of it."""

    name: str
    tensor: Tensor
    role: Role
    """matrix: a matrix inside a block; embedding: a table of vectors; other: biases, norms, heads."""
    num_matrices: int = 1
    """How many matrices of a `matrix` parameter lie side by side, such as query, key and value."""
