"""A plugin is imported from the current folder or an installed package, and one that fails is named with the remedy."""

import subprocess
import sys
from pathlib import Path

import pytest

from malmoi.errors import UserError
from malmoi.plugins import load_plugins
from tests.launching import environment


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", list(sys.path))
    return tmp_path


def test_modules_of_the_current_folder_are_imported_in_order_and_once(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "one.py").write_text("print('one')", encoding="utf-8")
    (tmp_path / "pack" / "two.py").write_text("import one; print('two')", encoding="utf-8")
    program = "from malmoi.plugins import load_plugins\nfor _ in range(2): load_plugins(('pack.two', 'one', 'json'))"
    done = subprocess.run(
        # -P: as the command `malmoi`, which does not have the current folder on its path.
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "one\ntwo\n"


def test_without_plugins_nothing_is_added_to_the_path(folder: Path) -> None:
    before = list(sys.path)
    load_plugins((), str(folder))
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("missing_plugin", None, r"no module 'missing_plugin' in \S+ or among installed packages; run from its folder"),
        ("plugin_a.py", "", r"no module 'plugin_a\.py' in .*; leave out the \.py"),
        ("plugin_b", "import nowhere_to_be_found", r"'plugin_b' fails .* at \S+plugin_b\.py:1 \(ModuleNotFoundError: "),
        ("plugin_c", "x = 1\ny = x / 0", r"'plugin_c' fails .* at \S+plugin_c\.py:2 \(ZeroDivisionError: .*; fix it"),
        ("plugin_d", "def f(:", r"'plugin_d' fails while it is imported \(SyntaxError: .*plugin_d\.py, line 1\)"),
        (".relative", None, r"'\.relative' fails while it is imported \(TypeError: "),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(folder: Path, name: str, source: str | None, message: str) -> None:
    if source is not None:
        (folder / f"{name.removesuffix('.py')}.py").write_text(source, encoding="utf-8")
    with pytest.raises(UserError, match=rf"^plugins: {message}") as raised:
        load_plugins((name,), str(folder))
    assert "\n" not in str(raised.value)


def test_a_name_that_is_registered_already_is_refused_at_the_line_that_registers_it(folder: Path) -> None:
    (folder / "replaces_txt.py").write_text("import malmoi\n\nmalmoi.READERS['.txt'] = malmoi.READERS['.csv']\n")
    place = f"{folder / 'replaces_txt.py'}:3"
    with pytest.raises(UserError, match=rf"^plugins: 'replaces_txt' fails .* at {place} \(ValueError: '\.txt' is "):
        load_plugins(("replaces_txt",), str(folder))
