"""`malmoi report`: one HTML file that shows a run, or several side by side."""

import time
from collections.abc import Sequence
from pathlib import Path

from configs.command_line import parse_settings
from configs.commands import ReportOptions
from configs.errors import EXIT_DONE, BadInput, require_argument
from data_prep.files import write_whole

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
    print(write_report(options.run, Path(options.out) if options.out else None, options.fewshot))
    return EXIT_DONE


def write_report(runs: tuple[str, ...], out: Path | None = None, fewshot: tuple[str, ...] = ()) -> Path:
    """Write the report of `runs`, all pre-trainings or all fine-tunings, to `out`, or into the first run's folder, and
    return its path.

    Args:
        fewshot: folders of `malmoi fewshot` besides those named `fewshot` in the run folders.

    Raises:
        BadInput: a run cannot be shown, or the file cannot be written.
    """
    page = _page(tuple(map(Path, runs)), tuple(map(Path, fewshot)))
    file = out or Path(runs[0]) / REPORT_FILE
    try:
        write_whole(file, page.encode(), durable=False)
    except OSError as error:
        raise BadInput(f"{file}: cannot be written ({error.strerror}); choose another place with --out") from error
    return file


def _page(runs: tuple[Path, ...], fewshot: tuple[Path, ...]) -> str:
    from launch.report_data import holds_finetuning, labels_of, read_run
    from launch.report_fewshot import read_fewshot

    labels, kinds = labels_of(runs), [holds_finetuning(run) for run in runs]
    if not any(kinds):
        from launch.report_page import report_page

        trained = [read_run(run, label) for run, label in zip(runs, labels, strict=True)]
        return report_page(trained, time.time(), read_fewshot(trained, fewshot))
    if not all(kinds):
        raise BadInput(
            f"{runs[kinds.index(True)]} is a fine-tuning and {runs[kinds.index(False)]} is none; give runs of one kind"
        )
    from launch.report_finetune import finetune_page, read_finetune

    tuned = [read_finetune(run, label) for run, label in zip(runs, labels, strict=True)]
    return finetune_page(tuned, time.time(), read_fewshot(tuned, fewshot))
