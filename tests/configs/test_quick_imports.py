import gc
from collections.abc import Iterator

import pytest

from configs.quick_imports import quick_imports


@pytest.fixture(autouse=True)
def searched_again() -> Iterator[None]:
    """Each test leaves the process as it was."""
    yield
    gc.unfreeze()
    gc.enable()


def test_what_is_imported_is_never_searched_for_cycles() -> None:
    before = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
        made = [[number] for number in range(100_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() - before > len(made)


def test_the_search_goes_on_after_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import not_installed_anywhere  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_a_process_that_does_not_search_goes_on_without() -> None:
    gc.disable()
    with quick_imports():
        pass
    assert not gc.isenabled()
