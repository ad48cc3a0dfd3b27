"""Ranks issue the same collectives in the same order, whatever each of them reads."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from torch import Tensor, distributed

import malmoi.train.pretrain_run
import malmoi.train.tasks.language_modeling
import malmoi.train.trainer
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.launch.cli import main
from malmoi.train.metrics.records import RunMetrics
from malmoi.train.run_dir import SettingChange
from malmoi.train.tasks.language_modeling import batch_loss_sum
from tests.launching import as_flags, metrics, with_settings
from tests.train.ranks import on_two_ranks

COLLECTIVES = (
    *("all_reduce", "broadcast", "barrier", "all_gather", "all_gather_into_tensor", "gather", "reduce", "scatter"),
    *("reduce_scatter_tensor", "all_to_all_single", "all_gather_object", "broadcast_object_list"),
)
BACKENDS = ("ddp", "fsdp2", "zero2")
PARTS = (((4, 5), 6, 8, 75), ((), None, 8, 0), ((), None, 10, 0))
"""Micro-batches whose loss is not finite, that in which a rank is asked to stop, steps, and exit code: to a rollback
and a stop; on to the end; and on from there, where the last evaluation was."""


def record_collectives(log: list[str]) -> None:
    """Have torch's collectives say what they are called with."""
    for name in COLLECTIVES:
        real = getattr(distributed, name)

        def recorded(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
            given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
            log.append(f"{name} {[(str(each.dtype), each.numel()) for each in given]}")
            return real(*args, **kwargs)

        setattr(distributed, name, recorded)


def disturb(rank: int, nan_at: Sequence[int], stop_at: int | None) -> None:
    """From now on, spoil the losses of some micro-batches on every rank, and stop rank 1 in one."""
    computed = 0

    def loss_sum(*args: Any) -> Tensor:
        nonlocal computed
        computed += 1
        if rank == 1 and computed == stop_at:
            signal.raise_signal(signal.SIGTERM)
        result = batch_loss_sum(*args)
        return result * float("nan") if computed in nan_at else result

    malmoi.train.tasks.language_modeling.batch_loss_sum = loss_sum


def read_stale_files() -> None:
    """See no evaluation, and settings that were changed."""
    malmoi.train.trainer.read_metrics = lambda run: RunMetrics((), (), (), (), ())
    malmoi.train.pretrain_run.setting_changes = lambda *args: (SettingChange("optim.lr", "optim.lr was another"),)


def record_a_rank(rank: int, folder: Path) -> None:
    before = dict(os.environ)
    # DeepSpeed does not let go of the process group.
    destroy, distributed.destroy_process_group = distributed.destroy_process_group, lambda *groups: None
    log: list[str] = []
    record_collectives(log)
    for backend in BACKENDS:
        words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        words += [f"--run={folder / backend}", f"--parallel.backend={backend}"]
        for part, (nan_at, stop_at, max_steps, expected) in enumerate(PARTS):
            log.clear()
            disturb(rank, nan_at, stop_at)
            if part > 0 and rank == 1:
                read_stale_files()
            assert main(["train", *words, f"--train.max_steps={max_steps}"]) == expected
            (folder / f"{backend}-{part}-{rank}.json").write_text(json.dumps(log), encoding="utf-8")
            AcceleratorState._reset_state(reset_partial_state=True)
            os.environ.clear()
            os.environ.update(before)
    distributed.destroy_process_group = destroy


@pytest.fixture(scope="module")
def recorded(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what two ranks issued in each part, rank 1 reading stale files when it resumes."""
    folder = tmp_path_factory.mktemp("collectives")
    settings = with_settings(
        tiny_settings,
        checkpoint__every=2,
        eval__every=2,
        log__every=2,
        rollback__max_nonfinite_steps=2,
    )
    (folder / "tiny.yaml").write_text(settings_as_yaml(settings), encoding="utf-8")
    (folder / "words.json").write_text(json.dumps(as_flags(folder / "tiny.yaml")), encoding="utf-8")
    on_two_ranks(record_a_rank, folder)
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_issue_the_same_collectives_though_one_reads_stale_files(recorded: Path, backend: str) -> None:
    events = [line["event"] for line in metrics(recorded / backend) if "event" in line]
    assert events == ["rollback", "resume", "resume"]
    for part in range(len(PARTS)):
        logs = [json.loads((recorded / f"{backend}-{part}-{rank}.json").read_text("utf-8")) for rank in range(2)]
        assert len(logs[0]) > 10
        assert logs[0] == logs[1]
