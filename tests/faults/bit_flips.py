"""Random bits of every file of a run folder, flipped one at a time.

Each flip meets two commands: `malmoi verify` on the finished run, which must name the file, and `malmoi train` on the
run as it was before its last checkpoint, which must end in the undisturbed run's weights or refuse in one line.
"""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from malmoi.launch.commands.verify import run_errors
from tests.faults.outcome import GOOD, Outcome, of_command, said
from tests.faults.workplace import Workplace

UNCHECKED = (".training.lock",)
"""Files that hold nothing."""
STOPPED_WITHOUT = ("model", "result.json", "step-000020")


@dataclass(frozen=True)
class FileFlips:
    """What the flips of one file came to."""

    file: str
    """Relative to the run folder."""
    flips: int
    unseen: int
    """Flips that `malmoi verify` did not name."""
    outcomes: dict[Outcome, int]
    """Of `malmoi train`; empty for files that a run which is not finished does not have."""
    defects: tuple[str, ...]
    """The first of them, in words."""

    @property
    def is_good(self) -> bool:
        """Whether each flip was named, and none did any harm."""
        return not self.unseen and all(outcome in GOOD for outcome in self.outcomes)


def flip_files(reference: Path, folder: Path, flips: int, trained: int, only: str = "") -> Iterator[FileFlips]:
    """Yield what flips of each file come to.

    Args:
        folder: an empty one to work in.
        flips: bits a file, which `malmoi verify` sees.
        trained: as many of them also meet `malmoi train`.
        only: part of the files' names.
    """
    finished, stopped = folder / "finished", folder / "stopped"
    shutil.copytree(reference / "run", finished)
    names = sorted(str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file())
    for name in names:
        if Path(name).name in UNCHECKED or only not in name or not (finished / name).stat().st_size:
            continue
        chance = random.Random(name)
        content = (finished / name).read_bytes()
        bits = [chance.randrange(8 * len(content)) for _ in range(flips)]
        unseen, defects, outcomes = 0, [], Counter[Outcome]()
        for bit in bits:
            (finished / name).write_bytes(_flipped(content, bit))
            if not any(str(finished / name) in line for line in run_errors(finished)):
                unseen += 1
                defects.append(f"bit {bit}: verify does not name it")
        (finished / name).write_bytes(content)
        if not set(STOPPED_WITHOUT) & set(Path(name).parts):
            for bit in bits[:trained]:
                shutil.rmtree(stopped, ignore_errors=True)
                stopped.mkdir()
                place = Workplace(stopped, reference)
                place.copy_stopped_run()
                (place.run / name).write_bytes(_flipped(content, bit))
                ended = place.fork(place.train_words()).end()
                outcome = of_command(ended, place.has_right_weights())
                outcomes[outcome] += 1
                if outcome not in GOOD:
                    defects.append(f"bit {bit}: {outcome}: {said(ended, outcome)}")
        yield FileFlips(name, flips, unseen, dict(outcomes), tuple(defects[:3]))


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
