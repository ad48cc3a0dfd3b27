"""Run Malmoi as a user does: in processes of its own, each under a time limit.

Most command lines run in a fork of a server that has imported everything and run nothing: a new interpreter would take
four seconds of a core for its imports. What depends on how an interpreter starts is tested where one starts.
"""

import atexit
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tests.time_limits import seconds

ROOT = Path(__file__).parent.parent
Settings = TypeVar("Settings", bound=Any)
ACCELERATE = str(Path(sys.executable).parent / "accelerate")


def environment() -> dict[str, str]:
    """This process's environment with one thread a rank and without a launcher's variables."""
    dropped = ("ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "DS_ACCELERATOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}


def run_malmoi(*words: str, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a `malmoi` command line to its end.

    Args:
        timeout: base of its time limit, in seconds.

    Raises:
        subprocess.TimeoutExpired: it had not ended by then, and was killed.
    """
    limit = seconds(timeout)
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        process = _FORKS.Process(target=_run_in_fork, args=(words, cwd or Path.cwd(), environment(), *outputs))
        process.start()
        process.join(limit)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["malmoi", *words], limit)
        return subprocess.CompletedProcess(["malmoi", *words], code, *(each.read_text("utf-8") for each in outputs))


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["malmoi.launch.cli", "malmoi.train.pretrain_run", "malmoi.train.finetune", __name__])


def _run_in_fork(words: Sequence[str], cwd: Path, variables: dict[str, str], stdout: Path, stderr: Path) -> None:
    for descriptor, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to its end
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to its end
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    sys.argv = ["malmoi", *words]
    from malmoi.launch.cli import main

    try:
        sys.exit(main())
    finally:
        # multiprocessing ends its processes without them.
        atexit._run_exitfuncs()


def two_ranks(*words: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Run `python -m train` on two gloo ranks under `accelerate launch`."""
    config = str(ROOT / "configs" / "accelerate" / "cpu.yaml")
    return subprocess.run(
        [ACCELERATE, "launch", "--config_file", config, "--main_process_port", "0", "-m", "train", *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds(timeout),
        check=False,
    )


def step_losses(run: Path) -> list[float]:
    """The logged training losses of a run, in step order."""
    return [line["train/loss"] for line in metrics(run) if "train/loss" in line]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def with_settings(settings: Settings, **changes: Any) -> Settings:
    """Return `settings` with dotted settings changed, `__` for a dot."""
    for name, value in changes.items():
        group, _, rest = name.partition("__")
        settings = replace(
            settings, **{group: with_settings(getattr(settings, group), **{rest: value}) if rest else value}
        )
    return settings


def as_flags(config: Path, **settings: object) -> Sequence[str]:
    """`--config FILE` and dotted settings, with `__` for a dot."""
    return ["--config", str(config), *(f"--{name.replace('__', '.')}={value}" for name, value in settings.items())]
