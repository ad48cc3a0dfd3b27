"""The lines of a run."""

import json
import subprocess
import sys
from pathlib import Path

from tests.launching import environment
from train.metrics import METRICS_FILE, drop_metrics_after


def lines_to(step: int) -> str:
    return "".join(json.dumps({"step": number, "loss": 1.0}) + "\n" for number in range(1, step + 1))


def test_lines_after_a_step_and_a_torn_one_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / METRICS_FILE
    file.write_text(lines_to(9) + '{"step": 10, "lo')
    drop_metrics_after(tmp_path, 4)
    assert file.read_text() == lines_to(4)
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_all_lines_and_nothing_beside_them(tmp_path: Path) -> None:
    file = tmp_path / METRICS_FILE
    file.write_text(lines_to(99))
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from train.metrics import drop_metrics_after\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "drop_metrics_after(Path(sys.argv[1]), 90)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert file.read_text() == lines_to(99)
    assert list(tmp_path.iterdir()) == [file]
