"""Where faults happen: a small run and what an undisturbed one leaves, and processes that train it.

Most commands run in a fork of this process, which has imported everything: a process of its own, to be killed and
signaled as any other, a second after it was asked for. What depends on how a process starts is started by `spawn`.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import malmoi.train.pretrain_run  # noqa: F401 - imported here, so that forks need not
from malmoi.launch.cli import main
from tests.conftest import small_corpus
from tests.faults.outcome import Ended
from tests.launching import environment
from tests.time_limits import seconds

STEPS = 20
LIMIT = 30.0
"""Base of the seconds after which a process hangs."""
SETTINGS = f"""
corpus: {{input: [TEXT]}}
tokenizer: {{vocab_size: 2000}}
data: {{val_fraction: 0.1}}
model: {{n_layer: 2, n_head: 2, n_embd: 32, block_size: 32, dropout: 0.1}}
train: {{global_batch_size: 8, micro_batch_size: 4, max_steps: {STEPS}, precision: fp32}}
optim: {{lr: 0.01}}
schedule: {{warmup_steps: 4}}
checkpoint: {{every: 5, keep_last: 3}}
eval: {{every: 10, sample_tokens: 8}}
log: {{every: 1, trackers: []}}
generate: {{max_new_tokens: 8}}
"""


class Running:
    """A process of its own."""

    def __init__(self, pid: int, stdout: Path, stderr: Path) -> None:
        self.pid, self._stdout, self._stderr = pid, stdout, stderr
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, as `Popen.poll` does."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self, base: float = LIMIT) -> Ended:
        """Wait for its end, at most so long, and return how it ended; workers that it left are killed."""
        limit = time.monotonic() + seconds(base)
        while self.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        code = self.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if code is None:
            os.waitpid(self.pid, 0)
        texts = (file.read_text(encoding="utf-8", errors="replace") for file in (self._stdout, self._stderr))
        return Ended(code, *texts)


@dataclass(frozen=True)
class Workplace:
    """A folder for one fault, and what an undisturbed run has left elsewhere."""

    folder: Path
    reference: Path
    """Folder with `text`, `settings.yaml`, and a finished `run`."""

    @property
    def run(self) -> Path:
        """The run folder that the fault happens to."""
        return self.folder / "run"

    @property
    def config(self) -> Path:
        """Settings of all runs; the text is that of the reference."""
        return self.reference / "settings.yaml"

    @property
    def text(self) -> Path:
        """The corpus."""
        return self.reference / "text.jsonl"

    def train_words(self, *more: str) -> list[str]:
        """Return the command that trains `run`."""
        return ["train", "--config", str(self.config), "--run", str(self.run), *more]

    def prepare_words(self, text: Path | None = None) -> list[str]:
        """Return the command that builds shards in the folder `shards`."""
        tokenizer = str(self.reference / "run" / "tokenizer")
        words = ["prepare", "--input", str(text or self.text), "--tokenizer", tokenizer, "--val_fraction", "0.1"]
        return [*words, "--out", str(self.folder / "shards")]

    def copy_run(self, *without: str) -> None:
        """Copy the reference's run, without some names."""
        shutil.copytree(self.reference / "run", self.run, ignore=shutil.ignore_patterns(*without), symlinks=True)

    def copy_stopped_run(self) -> None:
        """Copy the reference's run as it is before its last checkpoint."""
        self.copy_run("model", "result.json", f"step-{STEPS:06d}")

    def has_right_weights(self) -> bool:
        """Whether the run has ended in the undisturbed run's weights."""
        ours, theirs = (run / "model" / "model.safetensors" for run in (self.run, self.reference / "run"))
        return ours.is_file() and ours.read_bytes() == theirs.read_bytes()

    def fork(
        self,
        words: Sequence[str],
        variables: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> Running:
        """Start a `malmoi` command in a fork of this process; see `fork_call`."""
        return fork_call(partial(main, list(words)), self.folder, variables, before)

    def spawn(
        self,
        words: Sequence[str],
        variables: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
        launcher: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> Running:
        """Start a `malmoi` command in a new interpreter.

        Args:
            launcher: words before `-m malmoi.launch ...`; none: this Python.
            without: environment variables to leave out.
        """
        stdout, stderr = self.folder / "stdout.txt", self.folder / "stderr.txt"
        inherited = {name: value for name, value in environment().items() if name not in without}
        with stdout.open("wb") as out, stderr.open("wb") as error:
            process = subprocess.Popen(
                [*(launcher or [sys.executable]), "-m", "malmoi.launch", *words],
                cwd=self.folder,
                env={**inherited, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=error,
                start_new_session=True,
                preexec_fn=partial(_in_new_process, before),
            )
        return Running(process.pid, stdout, stderr)


def fork_call(
    call: Callable[[], int],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> Running:
    """Start a process of its own that is a fork of this one, in `folder`, and ends with what `call` returns.

    Args:
        variables: environment variables besides those of `environment()`.
        before: called in the new process before `call`.
    """
    stdout, stderr = folder / "stdout.txt", folder / "stderr.txt"
    for file in (stdout, stderr):
        file.write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Running(pid, stdout, stderr)
    code = 1
    try:
        os.setsid()
        default_signals()
        for descriptor, file in ((0, Path(os.devnull)), (1, stdout), (2, stderr)):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
        # This process may have replaced them, as pytest does.
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to its end
        sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to its end
        os.environ.clear()
        os.environ.update({**environment(), **(variables or {})})
        os.chdir(folder)
        if before is not None:
            before()
        code = call()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def default_signals() -> None:
    """Undo what a shell that starts this in the background, or `nohup`, has the processes ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _in_new_process(before: Callable[[], object] | None) -> None:
    default_signals()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if before is not None:
        before()


def make_reference(folder: Path) -> Path:
    """Return a folder with text, settings and a finished run, made unless it is there."""
    if (folder / "run" / "result.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": each}, ensure_ascii=False) + "\n" for each in small_corpus())
    (folder / "text.jsonl").write_text(lines, encoding="utf-8")
    (folder / "settings.yaml").write_text(SETTINGS.replace("TEXT", str(folder / "text.jsonl")), encoding="utf-8")
    place = Workplace(folder, folder)
    ended = place.fork(place.train_words()).end()
    if ended.code != 0:
        raise RuntimeError(ended.stderr)
    return folder


def drop_rights() -> None:
    """Have permissions count for this process and its children although it is root's.

    Raises:
        OSError: the kernel does not allow it.
    """
    overrides = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: of capabilities 0 to 31, then of 32 to 63
    dropped = [libc.prctl(24, number, 0, 0, 0) for number in (1, 2)]  # PR_CAPBSET_DROP: nor after an exec
    dropped.append(libc.capget(header, sets))
    for number in range(3):
        sets[number] &= ~overrides
    dropped.append(libc.capset(header, sets))
    if any(dropped):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")
