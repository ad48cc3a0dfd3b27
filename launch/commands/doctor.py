"""`malmoi doctor`: what this machine can do, what each missing thing costs, and the command that fixes it."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from malmoi.configs.commands import DoctorOptions
from malmoi.configs.parser import parse_settings
from malmoi.console import table_console
from malmoi.errors import EXIT_DONE, EXIT_FAILED
from malmoi.launch.machine import ENVIRONMENT_REPORTS, Finding, examine_machine


def main(argv: Sequence[str]) -> int:
    """Print the findings; return 1 only where nothing can train here, however much else is missing."""
    options = parse_settings(
        DoctorOptions, argv, "malmoi doctor", "What this machine can do, and what to install where it cannot."
    )
    findings = examine_machine()
    can_train = not any(map(_blocks, findings))
    if options.json:
        print(json.dumps({"can_train": can_train, "findings": [asdict(f) for f in findings]}, ensure_ascii=False))
    else:
        _print(findings, can_train, table_console())
    return EXIT_DONE if can_train else EXIT_FAILED


def _print(findings: Sequence[Finding], can_train: bool, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("state", "what", "found", "cost"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        style = "red" if _blocks(finding) else "green" if finding.state == "ok" else "yellow"
        table.add_row(Text(finding.state, style=style), finding.what, Text(finding.found), Text(finding.cost))
    console.print(table)
    fixes = [finding for finding in findings if finding.fix]
    if fixes:
        console.print("\nfixes:")
        width = max(len(finding.what) for finding in fixes)
        for finding in fixes:
            # Soft: a command that is broken over lines cannot be copied.
            console.print(f"  {finding.what:<{width}}  {finding.fix}", markup=False, soft_wrap=True)
    console.print(f"\nFor a bug report, add what these print: {'; '.join(ENVIRONMENT_REPORTS)}", soft_wrap=True)
    console.print("This machine can train." if can_train else "This machine cannot train until what is red is fixed.")


def _blocks(finding: Finding) -> bool:
    """Whether nothing trains because of it."""
    return finding.is_required and finding.state != "ok"
