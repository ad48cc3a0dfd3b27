"""Builds in processes of their own, to be killed, raced and waited for."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests import time_limits
from tests.time_limits import seconds

ROOT = Path(__file__).parents[2]
ONE = """
import json, logging, sys
from contextlib import contextmanager
from pathlib import Path
from malmoi.errors import RunFailed, UserError
from malmoi.configs.corpus import CleaningSettings, CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.readers import chunks
from malmoi.data_prep.pipeline import build_once as once
from malmoi.data_prep.pipeline.build import prepare_shards

if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    wanted = json.loads(sys.argv[1])
    # Many chunks of a small corpus; where chunks end decides where shards do.
    chunks.CHUNK_BYTES = 60_000
    chunks.CHUNK_CHARACTERS = 20_000
    if wanted["lock"] == "nothing":
        @contextmanager
        def try_lock(path):
            yield True
        once.try_lock = try_lock
    cleaning = CleaningSettings(**wanted["corpus"].pop("cleaning", {}))
    corpus = CorpusSettings(input=tuple(wanted["corpus"].pop("input")), cleaning=cleaning, **wanted["corpus"])
    try:
        data, plugins = DataSettings(**wanted["data"]), tuple(wanted["plugins"])
        print(prepare_shards(corpus, data, Path(wanted["tokenizer"]), Path(wanted["out"]), plugins))
    except (UserError, RunFailed) as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


class Build:
    """One process that prepares shards."""

    def __init__(
        self,
        tokenizer: Path,
        out: Path,
        input: Path,
        lock: str = "real",
        corpus: dict[str, object] | None = None,
        plugins: tuple[str, ...] = (),
        cwd: Path = ROOT,
        **data: object,
    ) -> None:
        """Start it in the folder `cwd`; `data` are fields of `DataSettings`."""
        out.mkdir(parents=True, exist_ok=True)
        script = out.parent / "one_build.py"
        if not script.exists():
            script.write_text(ONE, encoding="utf-8")
        wanted = {
            "corpus": {**(corpus or {}), "input": [str(input)]},
            "data": data,
            "tokenizer": str(tokenizer),
            "out": str(out),
            "lock": lock,
            "plugins": plugins,
        }
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(wanted)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def folder(self) -> Path:
        """The shard folder, once the process has ended well."""
        out, log = self.process.communicate(timeout=seconds(200))
        assert self.process.returncode == 0, log
        return Path(out.strip())

    def error(self) -> str:
        """The log, once the process has failed."""
        _, log = self.process.communicate(timeout=seconds(200))
        assert self.process.returncode, log
        return log

    def kill(self) -> None:
        """SIGKILL to the process alone: its workers must end by themselves."""
        self.process.kill()
        self.process.communicate()


def content_of(folder: Path) -> dict[str, str]:
    """A hash of every file's content, by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def wait_until(is_so: Callable[[], bool]) -> None:
    """Poll until something is so."""
    time_limits.wait_until(is_so, 60, "what the test needs of another process")
