"""Imports run one way, as pyproject.toml's contracts say."""

import subprocess
import sys
from pathlib import Path

from tests.launching import ROOT, environment


def test_every_contract_about_imports_is_kept() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "5 kept, 0 broken" in done.stdout


def test_preparing_text_loads_no_torch() -> None:
    program = (
        "import sys\nfrom malmoi.data_prep.pipeline import build, encode_corpus, mixture\n"
        "print({'torch', 'transformers', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
