"""`malmoi report`: one HTML file that shows a run, or several side by side."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from malmoi.atomic_io import write_atomic
from malmoi.configs.commands import ReportOptions
from malmoi.configs.parser import parse_settings
from malmoi.errors import EXIT_DONE, UserError, require_argument

REPORT_FILE = "report.html"


def main(argv: Sequence[str]) -> int:
    """Write the report and print its path."""
    options = parse_settings(
        ReportOptions,
        argv,
        "malmoi report",
        "Write RUN/report.html, or the report of several runs side by side.",
        lists=("run", "fewshot"),
        positional="run",
    )
    require_argument("report", "RUN", bool(options.run))
    report = write_report(options.run, Path(options.out) if options.out else None, options.fewshot)
    if report.note is not None:
        print(f"malmoi report: {report.note}", file=sys.stderr)
    print(report.file)
    return EXIT_DONE


@dataclass(frozen=True)
class WrittenReport:
    """A report on the disk."""

    file: Path
    note: str | None
    """Why its runs' bits per byte do not compare; none where they do."""


def write_report(runs: tuple[str, ...], out: Path | None = None, fewshot: tuple[str, ...] = ()) -> WrittenReport:
    """Write the report of `runs`, all pre-training or all fine-tuning, to `out`, or into the first run's folder.

    Args:
        fewshot: folders of `malmoi fewshot` besides those named `fewshot` in the run folders.

    Raises:
        UserError: a run cannot be shown, or the file cannot be written.
    """
    from malmoi.launch.report.fewshot import read_fewshot
    from malmoi.launch.report.page import report_page
    from malmoi.launch.report.runs import FinetuneRun, PretrainRun, read_run, run_labels, validation_note

    folders = [Path(run) for run in runs]
    read = [read_run(folder, label) for folder, label in zip(folders, run_labels(folders), strict=True)]
    pretrained = [run for run in read if isinstance(run, PretrainRun)]
    finetuned = [run for run in read if isinstance(run, FinetuneRun)]
    if pretrained and finetuned:
        raise UserError(
            f"{finetuned[0].folder} is a fine-tuning run and {pretrained[0].folder} is not; give runs of one kind"
        )
    page = report_page(pretrained or finetuned, time.time(), read_fewshot(read, [Path(folder) for folder in fewshot]))
    file = out or folders[0] / REPORT_FILE
    try:
        write_atomic(file, page.encode(), durable=False)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another place with --out") from error
    return WrittenReport(file, validation_note(pretrained))
