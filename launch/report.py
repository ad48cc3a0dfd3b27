"""`malmoi report`: one HTML file that shows a run, or several side by side."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from configs.command_line import parse_settings
from configs.commands import ReportOptions
from configs.errors import EXIT_DONE, BadInput, require_options

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
    require_options("report", run=bool(options.run))
    print(write_report(options.run, Path(options.out) if options.out else None, options.fewshot))
    return EXIT_DONE


def write_report(runs: tuple[str, ...], out: Path | None = None, fewshot: tuple[str, ...] = ()) -> Path:
    """Write the report of `runs` to `out`, or into the first run's folder, and return its path.

    Args:
        fewshot: folders of `malmoi fewshot` besides those named `fewshot` in the run folders.

    Raises:
        BadInput: a run cannot be shown, or the file cannot be written.
    """
    from launch.report_data import read_runs
    from launch.report_fewshot import read_fewshot
    from launch.report_page import report_page

    records = read_runs(runs)
    page = report_page(records, time.time(), read_fewshot(records, tuple(map(Path, fewshot))))
    file = out or Path(runs[0]) / REPORT_FILE
    temporary = file.with_name(f".{file.name}.{os.getpid()}.writing")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BadInput(f"{file}: cannot be written ({error.strerror}); choose another place with --out") from error
    return file
