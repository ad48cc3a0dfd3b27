"""Files of a run that are cut, lost, overwritten, in the way or unreadable, between two starts."""

import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.faults.fault import Fault
from tests.faults.outcome import Ended, Outcome, of_command
from tests.faults.workplace import Workplace, drop_rights

DAMAGES: dict[str, Callable[[Path], object]] = {
    "is empty": lambda file: os.truncate(file, 0),
    "is cut in half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "lacks its last byte": lambda file: os.truncate(file, max(0, file.stat().st_size - 1)),
    "is gone": lambda file: file.unlink(),
    "holds random bytes": lambda file: file.write_bytes(random.Random(0).randbytes(max(64, file.stat().st_size))),
    "is a folder": lambda file: (file.unlink(), file.mkdir()),
    "is a dangling link": lambda file: (file.unlink(), file.symlink_to("/nowhere/at/all")),
    "cannot be read": lambda file: file.chmod(0),
}


def file_faults(reference: Path) -> Iterator[Fault]:
    """Yield each damage of each file of a stopped run, before it is resumed."""
    names = sorted(
        str(file.relative_to(reference / "run"))
        for file in (reference / "run").rglob("*")
        if file.is_file()
        and not {"model", "step-000020", "result.json"} & set(file.relative_to(reference / "run").parts)
    )
    for name in names:
        for what in DAMAGES:
            yield Fault("a file of a stopped run", f"{name} {what}", partial(_resume_with_damage, name, what))


def _resume_with_damage(name: str, what: str, place: Workplace) -> tuple[Outcome, Ended]:
    place.copy_stopped_run()
    DAMAGES[what](place.run / name)
    before = None
    if what == "cannot be read":
        before = drop_rights
    ended = place.fork(place.train_words(), before=before).end()
    return of_command(ended, place.has_right_weights()), ended
