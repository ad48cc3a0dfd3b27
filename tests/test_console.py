import pytest
from rich.table import Table

from malmoi.console import table_console


@pytest.mark.parametrize("stderr", [False, True])
def test_a_table_that_is_piped_is_not_truncated(stderr: bool, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["runs/" + "a" * 60, "-0.2949 to -0.0012", "b" * 40]
    table = Table()
    for word in words:
        table.add_column(word, no_wrap=True)
    table_console(stderr=stderr).print(table)
    streams = capsys.readouterr()
    assert all(word in (streams.err if stderr else streams.out) for word in words)
