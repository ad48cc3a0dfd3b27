"""A process that has trained ends with its own exit code, whatever torch's threads still do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import malmoi
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from tests.launching import as_flags, environment, two_ranks, with_settings
from tests.time_limits import seconds

ENDS = "from malmoi.process_end import run_to_end\nimport atexit, sys\n"


def ends(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


OUTLIVES = """
import builtins

class Outlives:
    def __del__(self, write=sys.__stdout__.write, flush=sys.__stdout__.flush):
        write("taken apart")
        flush()

builtins.kept = Outlives()
"""


def test_nothing_is_destroyed_after_the_last_of_the_program_has_run() -> None:
    """As a group's threads would be, in the middle of their work."""
    script = f"{ENDS}import torch\n{OUTLIVES}run_to_end(lambda: print('done') or 0)"
    stdout, stderr = ends(["-c", script]).communicate(timeout=seconds(60))
    assert stdout == "done\n", stderr
    left = script.replace("run_to_end(lambda: print('done') or 0)", "print('done')")
    assert ends(["-c", left]).communicate(timeout=seconds(60))[0] == "done\ntaken apart", "else this shows nothing"


@pytest.mark.parametrize(
    ("script", "code", "output"),
    [
        ("run_to_end(lambda: 3)", 3, ""),
        ("import torch; run_to_end(lambda: 3)", 3, ""),
        ("import torch; run_to_end(lambda: print('last words') or 0)", 0, "last words\n"),
        ("import torch; run_to_end(lambda: sys.exit(2))", 2, ""),
        ("import torch; run_to_end(lambda: sys.exit())", 0, ""),
        ("import torch; run_to_end(lambda: 1 // 0)", 1, ""),
        ("import torch; run_to_end(lambda: atexit.register(print, 'at exit') and 0)", 0, "at exit\n"),
        (
            "import torch, time; from concurrent.futures import ThreadPoolExecutor; pool = ThreadPoolExecutor(1)\n"
            "def main():\n    pool.submit(lambda: (time.sleep(0.5), print('done')))\n    return 0\n"
            "run_to_end(main)",
            0,
            "done\n",
        ),
    ],
)
def test_the_end_of_the_interpreter_is_as_any_other(script: str, code: int, output: str) -> None:
    process = ends(["-c", ENDS + script])
    stdout, stderr = process.communicate(timeout=seconds(60))
    assert (process.returncode, stdout) == (code, output), stderr


@pytest.mark.soak
@pytest.mark.parametrize("backend", [name for name in malmoi.BACKENDS if name != "single"])
def test_none_of_200_runs_on_two_ranks_aborts_at_its_end(
    tiny_settings: RunSettings, tmp_path: Path, backend: str
) -> None:
    file = tmp_path / "tiny.yaml"
    settings = with_settings(tiny_settings, train__max_steps=2, checkpoint__every=0, eval__every=0)
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    for number in range(200):
        done = two_ranks(*as_flags(file, run=tmp_path / str(number), parallel__backend=backend))
        assert done.returncode == 0, (number, done.stderr)
        assert "terminate called" not in done.stderr, (number, done.stderr)
        shutil.rmtree(tmp_path / str(number))
