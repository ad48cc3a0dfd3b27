"""An exported model behind `transformers serve`, asked by OpenAI's own client over loopback."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from malmoi.configs.outputs import SamplingSettings
from malmoi.inference.generate import generate
from malmoi.inference.model_folder import load_model
from tests.launching import ROOT, environment
from tests.time_limits import seconds, wait_until

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
openai = pytest.importorskip("openai", reason="the extra `serve` is not installed")

PAGE = ROOT / "docs" / "serving.md"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """The address of a server of `model`, started with the page's own command."""
    port = free_port()
    command = re.search(r"^HF_HUB_OFFLINE=1 (transformers serve .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert command is not None
    words = command[1].replace("runs/demo/model", str(model)).replace("8000", str(port)).split()
    words[0] = str(Path(sys.executable).parent / words[0])
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(words, env={**environment(), "HF_HUB_OFFLINE": "1"}, stdout=output, stderr=output)
    try:
        wait_until(lambda: server.poll() is not None or answers(port), 120, f"the server answers; see {log}", pause=0.2)
        if server.poll() is not None:
            pytest.fail(f"the server does not answer: {log.read_text(encoding='utf-8')[-2000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(seconds(20))
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_a_client_gets_the_text_that_the_model_generates(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = finished_run / "model"
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with serving(model, tmp_path / "log") as address:
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=seconds(60))
        answer = client.completions.create(model=str(model), prompt="이순신", max_tokens=10, temperature=0)
        pieces = client.completions.create(model=str(model), prompt="이순신", max_tokens=10, temperature=0, stream=True)
        streamed = "".join(piece.choices[0].text for piece in pieces)
    settings = SamplingSettings(do_sample=False, num_return_sequences=1, max_new_tokens=10)
    [ours] = generate(load_model(model), ["이순신"], settings)
    assert answer.choices[0].text == ours.samples[0].removeprefix("이순신")
    assert streamed == answer.choices[0].text
