"""All faults, one after another: `python -m tests.faults [--only PART] [--flips 200] [--out FILE]`.

Prints a table of outcomes, and each defect with what was said. Exit code 0: every fault ended right or in a refusal of
one line.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from malmoi.console import table_console
from tests.faults import disks
from tests.faults.bit_flips import FileFlips, flip_files
from tests.faults.disks import disk_faults
from tests.faults.fault import Fault
from tests.faults.files import file_faults
from tests.faults.inputs import input_faults
from tests.faults.kills import kill_faults
from tests.faults.outcome import GOOD, Outcome, Result, said
from tests.faults.starts import start_faults
from tests.faults.workplace import Workplace, make_reference


def all_faults(reference: Path) -> Iterator[Fault]:
    """Yield every fault that this machine can have happen."""
    yield from kill_faults()
    if disks.is_possible():
        yield from disk_faults()
        yield from file_faults(reference)
        yield from input_faults()
    yield from start_faults()


def happen(fault: Fault, folder: Path, reference: Path) -> Result:
    """Have a fault happen in a new folder, and return its outcome."""
    folder.mkdir(parents=True)
    outcome, ended = fault.happen(Workplace(folder, reference))
    return Result(fault.group, fault.name, outcome, said(ended, outcome))


def outcome_table(results: Iterable[Result]) -> Table:
    """Return a row a group of faults, and a column an outcome."""
    counts: dict[str, Counter[Outcome]] = defaultdict(Counter)
    for result in results:
        counts[result.group][result.outcome] += 1
    bad = [outcome for outcome in Outcome if outcome not in GOOD and any(count[outcome] for count in counts.values())]
    table = Table("faults", "of them", *(str(outcome) for outcome in (*GOOD, *bad)))
    for group, count in counts.items():
        table.add_row(group, str(sum(count.values())), *(str(count[outcome]) for outcome in (*GOOD, *bad)))
    total = sum(counts.values(), Counter[Outcome]())
    table.add_row("all", str(sum(total.values())), *(str(total[outcome]) for outcome in (*GOOD, *bad)))
    return table


def flip_table(flips: Iterable[FileFlips]) -> Table:
    """Return a row a file."""
    table = Table("file", "flips", "unseen by verify", "trained", *(str(outcome) for outcome in GOOD), "defects")
    for each in flips:
        good = [each.outcomes.get(outcome, 0) for outcome in GOOD]
        trained = sum(each.outcomes.values())
        table.add_row(each.file, *map(str, (each.flips, each.unseen, trained, *good, trained - sum(good))))
    return table


def main() -> int:
    """Run the faults that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="part of a fault's group and name, or of a file's name")
    parser.add_argument("--flips", type=int, default=0, help="bits to flip in each file of a run, for verify")
    parser.add_argument("--trained", type=int, default=0, help="of them, flips that a run resumes with")
    parser.add_argument("--out", type=Path, help="file of JSON lines for the outcomes")
    given = parser.parse_args()
    console = table_console()
    reference = make_reference(Path(tempfile.mkdtemp(prefix="malmoi-faults-")) / "reference")
    folder = reference.parent
    for path in (folder, reference):
        path.chmod(0o755)
    results, flips = [], []
    with (given.out or Path("/dev/null")).open("w", encoding="utf-8") as out:
        if not given.flips:
            for number, fault in enumerate(all_faults(reference)):
                if given.only not in f"{fault.group}: {fault.name}":
                    continue
                result = happen(fault, folder / f"fault-{number}", reference)
                results.append(result)
                out.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
                out.flush()
                if not result.is_good:
                    console.print(
                        f"{fault.group}: {fault.name}: {result.outcome}\n  {result.said}", markup=False, soft_wrap=True
                    )
            console.print(outcome_table(results))
        else:
            for each in flip_files(reference, folder, given.flips, given.trained, given.only):
                flips.append(each)
                out.write(json.dumps(asdict(each), ensure_ascii=False) + "\n")
                out.flush()
                for defect in each.defects:
                    console.print(f"{each.file}: {defect}", markup=False, soft_wrap=True)
            console.print(flip_table(flips))
    return 0 if all(each.is_good for each in (*results, *flips)) else 1


if __name__ == "__main__":
    sys.exit(main())
