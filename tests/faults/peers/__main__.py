"""The same faults on Malmoi, on HF's Trainer and on a plain loop: `python -m tests.faults.peers [--out FILE]`.

Each side trains a GPT-2 of the same shape on the same tokens for 20 steps, with a checkpoint every five. A fault is
followed by the same command again. Prints a table of outcomes a side.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from malmoi.launch.cli import main as malmoi
from tests.faults import disks
from tests.faults.disks import tmpfs
from tests.faults.files import DAMAGES
from tests.faults.outcome import Ended, Outcome, Result
from tests.faults.peers import hf_trainer, plain_loop
from tests.faults.workplace import Running, fork_call, make_reference

MOMENTS, FLIPS = 10, 5
"""Random moments of SIGKILL; bits a file of the newest checkpoint."""
DISKS = (200, 600, 1200, 2000, 3000, 4000)
"""Sizes of a disk, in KiB."""


@dataclass(frozen=True)
class Side:
    """A way to train."""

    name: str
    train: Callable[[Path, Path], int]
    """Called with a folder that holds `text.jsonl` and `tokens.bin`, and the run's; does what is left of the run."""
    newest: Callable[[Path], Path]
    """From the run's folder to its newest checkpoint, a file or folder."""
    weights: Callable[[Path], dict[str, torch.Tensor]]
    """The trained weights of a finished run."""

    def start(self, data: Path, run: Path, folder: Path) -> Running:
        """Start a process that does what is left of the run."""
        return fork_call(partial(self.train, data, run), folder)

    def is_right(self, run: Path, reference: Path) -> bool:
        """Whether the run ended in the reference's weights, bit for bit."""
        try:
            ours, theirs = self.weights(run), self.weights(reference)
        except (OSError, RuntimeError, KeyError, ValueError):
            return False
        return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def _highest(run: Path, pattern: str) -> Path:
    return max(run.glob(pattern), key=lambda path: int(path.name.rpartition("-")[2]))


def _malmoi(data: Path, run: Path) -> int:
    return malmoi(["train", "--config", str(data / "settings.yaml"), "--run", str(run)])


SIDES = (
    Side(
        "Malmoi",
        _malmoi,
        lambda run: _highest(run, "checkpoints/step-*"),
        lambda run: load_file(run / "model" / "model.safetensors"),
    ),
    Side(
        "HF Trainer",
        lambda data, run: hf_trainer.train(data / "tokens.bin", run),
        lambda run: _highest(run, "checkpoint-*"),
        lambda run: load_file(run / "model" / "model.safetensors"),
    ),
    Side(
        "a loop as nanoGPT's",
        lambda data, run: plain_loop.train(data / "tokens.bin", run),
        lambda run: run / "ckpt.pt",
        lambda run: torch.load(run / "ckpt.pt")["model"],
    ),
)


@dataclass(frozen=True)
class Bench:
    """A side, its data, and what its undisturbed run left."""

    side: Side
    data: Path
    finished: Path
    stopped: Path
    """The run as it is after step 15."""
    folder: Path
    """For one fault."""

    @property
    def run(self) -> Path:
        """The run that the fault happens to."""
        return self.folder / "run"

    def outcome(self, ended: Ended, was_stopped: bool = False) -> Outcome:
        """Return the outcome of the last start after a fault."""
        if ended.code is None:
            return Outcome.HANGS
        if ended.code == 0:
            if not self.side.is_right(self.run, self.finished):
                return Outcome.SILENT
            return Outcome.RESUMED if was_stopped else Outcome.RIGHT
        return Outcome.TRACEBACK if "Traceback" in ended.stderr else Outcome.REFUSED

    def again(self) -> Ended:
        """Start the run again and wait for its end."""
        return self.side.start(self.data, self.run, self.folder).end()


Fault = tuple[str, str, Callable[[Bench], Outcome]]


def faults(bench: Bench) -> Iterator[Fault]:
    """Yield the faults: their group, name and injection."""
    for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1"):
        for moment in range(MOMENTS if name == "SIGKILL" else 3):
            yield f"{name}, then again", str(moment), partial(_signaled, signal.Signals[name], random.Random(moment))
    newest = bench.side.newest(bench.stopped)
    files = sorted(newest.iterdir()) if newest.is_dir() else [newest]
    for file in files:
        name = str(file.relative_to(bench.stopped))
        for what in DAMAGES:
            if what != "cannot be read":
                yield (
                    "a damaged file of the newest checkpoint",
                    f"{name} {what}",
                    partial(_damaged, name, DAMAGES[what]),
                )
        for number in range(FLIPS):
            flip = partial(_flip, random.Random(f"{name} {number}"))
            yield "a flipped bit in the newest checkpoint", f"{name} {number}", partial(_damaged, name, flip)
    if disks.is_possible():
        for kib in DISKS:
            yield "a full disk, then room", f"{kib} KiB", partial(_full_disk, kib)
    yield "the data changed in place, its time set back", "", _changed_data
    yield "started twice at once", "", _twice


def _signaled(number: signal.Signals, chance: random.Random, bench: Bench) -> Outcome:
    process = bench.side.start(bench.data, bench.run, bench.folder)
    time.sleep(chance.uniform(0.05, 3.0))
    process.send(number)
    first = process.end()
    if first.code == 0:
        return bench.outcome(first)
    return bench.outcome(bench.again(), was_stopped=True)


def _damaged(name: str, damage: Callable[[Path], object], bench: Bench) -> Outcome:
    shutil.copytree(bench.stopped, bench.run)
    damage(bench.run / name)
    return bench.outcome(bench.again())


def _flip(chance: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    if content:
        bit = chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)


def _full_disk(kib: int, bench: Bench) -> Outcome:
    with tmpfs(bench.run, f"size={kib}k"):
        first = bench.again()
        if first.code == 0:
            return bench.outcome(first)
        subprocess.run(["mount", "-o", "remount,size=64m", str(bench.run)], check=True)
        refused = bench.outcome(first)
        return bench.outcome(bench.again(), was_stopped=True) if refused is Outcome.REFUSED else refused


def _changed_data(bench: Bench) -> Outcome:
    """Other text of the same length; whoever trains on a mixture of both without a word is silent."""
    shutil.copytree(bench.stopped, bench.run)
    data = bench.folder / "data"
    shutil.copytree(bench.data, data, ignore=shutil.ignore_patterns("run"))
    settings = data / "settings.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(bench.data), str(data)), encoding="utf-8")
    for name in ("text.jsonl", "tokens.bin"):
        file = data / name
        status, content = file.stat(), file.read_bytes()
        units = [content[at : at + 2] for at in range(0, len(content), 2)] if name == "tokens.bin" else None
        file.write_bytes(b"".join((units or content.splitlines(keepends=True))[::-1]))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    ended = bench.side.start(data, bench.run, bench.folder).end()
    return Outcome.SILENT if ended.code == 0 else bench.outcome(ended)


def _twice(bench: Bench) -> Outcome:
    first = bench.side.start(bench.data, bench.run, bench.folder)
    elsewhere = bench.folder / "second"
    elsewhere.mkdir()
    second = bench.side.start(bench.data, bench.run, elsewhere).end()
    ends = (first.end(), second)
    if all(ended.code == 0 for ended in ends):
        return Outcome.SILENT
    return max((bench.outcome(ended) for ended in ends), key=list(Outcome).index)


def main() -> int:
    """Run all faults on all sides."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="part of a side's name")
    parser.add_argument("--out", type=Path, default=Path(os.devnull), help="file of JSON lines for the outcomes")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="malmoi-peers-"))
    data = make_reference(work / "data")
    [shard] = data.glob("run/shards/*/train-00000.bin")
    shutil.copy(shard, data / "tokens.bin")
    table = Table("side", "faults", "fault", *(str(outcome) for outcome in Outcome))
    with given.out.open("w", encoding="utf-8") as out:
        for side in SIDES:
            if given.only not in side.name:
                continue
            counts: dict[str, Counter[Outcome]] = {}
            for result in _results(side, data, work / side.name.replace(" ", "-")):
                counts.setdefault(result.group, Counter())[result.outcome] += 1
                out.write(json.dumps({"side": side.name, **asdict(result)}, ensure_ascii=False) + "\n")
                out.flush()
            for group, count in counts.items():
                table.add_row(side.name, str(sum(count.values())), group, *(str(count[each] or "") for each in Outcome))
    Console(soft_wrap=True, width=200).print(table)
    return 0


def _results(side: Side, data: Path, folder: Path) -> Iterator[Result]:
    folder.mkdir()
    finished = folder / "finished"
    ended = side.start(data, finished, folder).end()
    if ended.code != 0:
        raise RuntimeError(f"{side.name}: {ended.stderr}")
    stopped = folder / "stopped"
    shutil.copytree(finished, stopped, ignore=shutil.ignore_patterns("model", "result.json", "*-20", "step-000020"))
    if side.newest(stopped).name == "ckpt.pt":
        # Only one is kept.
        (stopped / "ckpt.pt").unlink()
        fork_call(partial(plain_loop.train, data / "tokens.bin", stopped, 15), folder).end()
    bench = Bench(side, data, finished, stopped, folder)
    for number, (group, name, inject) in enumerate(faults(bench)):
        place = folder / f"fault-{number}"
        place.mkdir()
        outcome = inject(Bench(side, data, finished, stopped, place))
        yield Result(group, name, outcome, "")
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
