"""docs/tutorial.md, run from its first line to its last, on a smaller model than the page's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import ROOT, environment
from tests.time_limits import seconds

PAGE = ROOT / "docs" / "tutorial.md"
SMALLER = (
    "--model.n_layer 1 --model.n_head 2 --model.n_embd 32 --train.max_steps 8 --train.global_batch_size 8 "
    "--train.micro_batch_size 8 --log.every 4 --optim.lr 1e-3"
)
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page is followed, with `malmoi` on the path."""
    folder = tmp_path_factory.mktemp("tutorial")
    command = folder / "bin" / "malmoi"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom malmoi.launch.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
    (command.parent / "python").symlink_to(sys.executable)
    return folder


def test_every_command_and_every_line_of_python_on_the_page_runs(folder: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks].count("sh") >= 5
    env = {**environment(), "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"}
    script = []
    for kind, text in blocks:
        if kind == "python":
            script.append(text)
            continue
        text = re.sub(r"^(malmoi train .*)$", rf"\1 {SMALLER}", text, flags=re.MULTILINE)
        done = subprocess.run(
            ["bash", "-euc", text],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=seconds(240),
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    # One process for all Python, after all commands: what a block makes, the next one uses.
    (folder / "page.py").write_text("\n".join(script), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds(240),
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "92,834,304" in done.stdout
