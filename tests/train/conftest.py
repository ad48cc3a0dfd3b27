"""What each test that trains in this process leaves as it was."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Forget the ranks that an earlier run in this process joined."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
