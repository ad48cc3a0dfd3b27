"""torch's profiler around chosen steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

PROFILE_FOLDER = "profile"


@contextmanager
def profiled_step(run: Path, step: int, chosen: Sequence[int], rank: int) -> Iterator[None]:
    """Profile the enclosed step if `step` is among `chosen`: write RUN/profile/step-N-rank-R.json, for Perfetto."""
    if step not in chosen:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        yield
    folder = run / PROFILE_FOLDER
    folder.mkdir(exist_ok=True)
    profile.export_chrome_trace(str(folder / f"step-{step}-rank-{rank}.json"))
