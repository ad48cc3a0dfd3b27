"""An exported model behind `transformers serve`, asked by OpenAI's own client over loopback."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def client(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """OpenAI's client of a server of `finished_run`'s model."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        with serving(finished_run / "model", tmp_path_factory.mktemp("server") / "log") as address:
            yield openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=seconds(60))


def completion(client: Any, run: Path, **request: Any) -> Any:
    return client.completions.create(**{"model": str(run / "model"), "prompt": "이순신", "max_tokens": 10, **request})


def text(client: Any, run: Path, **request: Any) -> str:
    return str(completion(client, run, **request).choices[0].text)


def test_a_client_gets_the_text_that_the_model_generates(client: Any, finished_run: Path) -> None:
    answer = text(client, finished_run, temperature=0)
    pieces = completion(client, finished_run, temperature=0, stream=True)
    settings = SamplingSettings(do_sample=False, num_return_sequences=1, max_new_tokens=10)
    [ours] = generate(load_model(finished_run / "model"), ["이순신"], settings)
    assert answer == ours.samples[0].removeprefix("이순신")
    assert "".join(piece.choices[0].text for piece in pieces) == answer


def test_temperature_top_p_and_seed_of_a_request_are_heeded(client: Any, finished_run: Path) -> None:
    greedy = {text(client, finished_run, temperature=0, seed=seed) for seed in (1, 2)}
    one, same, other = (text(client, finished_run, temperature=1, seed=seed) for seed in (1, 1, 2))
    assert len(greedy) == 1
    assert one == same != other
    assert {text(client, finished_run, temperature=1, top_p=1e-6, seed=seed) for seed in (1, 2)} == greedy
    without = {text(client, finished_run, seed=seed) for seed in (1, 2)}
    assert without == {one, other}, "the default temperature is 1"
    settings = SamplingSettings(num_return_sequences=1, max_new_tokens=10, seed=2)
    [ours] = generate(load_model(finished_run / "model"), ["이순신"], settings)
    assert ours.samples[0] == "이순신" + other


def test_what_the_page_says_of_lists_n_and_logprobs_holds(client: Any, finished_run: Path) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        completion(client, finished_run, prompt=["이순신", "세종"])
    assert refused.value.response.json() == {"detail": "prompt must be a string."}
    answer = completion(client, finished_run, n=2, logprobs=3)
    assert len(answer.choices) == 1
    assert answer.choices[0].logprobs is None
    with pytest.raises(openai.InternalServerError):
        completion(client, finished_run, max_tokens=1000, temperature=0)
