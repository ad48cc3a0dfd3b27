"""`malmoi doctor`: what this machine can do, what each missing thing costs, and the command that mends it."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.command_line import parse_settings
from configs.commands import DoctorOptions
from configs.errors import EXIT_DONE
from configs.table_console import table_console
from launch.machine import Finding, examine

EXIT_CANNOT_TRAIN = 1
COLOURS = {"ok": "green", "missing": "yellow", "low": "yellow"}


def main(argv: Sequence[str]) -> int:
    """Print the findings; 1 only where nothing can train here, however much else is missing."""
    options = parse_settings(
        DoctorOptions, argv, "malmoi doctor", "What this machine can do, and what to install where it cannot."
    )
    findings = examine()
    can_train = not any(finding.is_required and finding.state != "ok" for finding in findings)
    if options.json:
        print(json.dumps({"can_train": can_train, "findings": [asdict(f) for f in findings]}, ensure_ascii=False))
    else:
        _print(findings, can_train, table_console())
    return EXIT_DONE if can_train else EXIT_CANNOT_TRAIN


def _print(findings: Sequence[Finding], can_train: bool, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("state", "what", "found", "what it costs"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        state = Text(finding.state, style="red" if _stops(finding) else COLOURS[finding.state])
        table.add_row(state, Text(finding.what), Text(finding.found), Text(finding.cost))
    console.print(table)
    mends = [finding for finding in findings if finding.mend]
    if mends:
        console.print("\nwhat mends it:")
        width = max(len(finding.what) for finding in mends)
        for finding in mends:
            # Soft: a command that is broken over lines cannot be copied.
            console.print(f"  {finding.what:<{width}}  {finding.mend}", markup=False, soft_wrap=True)
    console.print(
        "\nThis machine can train." if can_train else "\nThis machine cannot train before what is red is mended."
    )


def _stops(finding: Finding) -> bool:
    return finding.is_required and finding.state != "ok"
