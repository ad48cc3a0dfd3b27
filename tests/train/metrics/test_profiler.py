import json
from pathlib import Path

import torch

from malmoi.train.metrics.profiler import profiled_step


def test_only_chosen_steps_are_profiled(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        with profiled_step(tmp_path, step, (2,), rank=1):
            torch.ones(8, 8) @ torch.ones(8, 8)
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == "step-2-rank-1.json"
    names = {event.get("name") for event in json.loads(file.read_text(encoding="utf-8"))["traceEvents"]}
    assert "aten::matmul" in names
