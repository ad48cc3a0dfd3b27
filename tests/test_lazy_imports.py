import gc
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from malmoi import lazy_imports
from malmoi.lazy_imports import fast_imports
from tests.launching import environment
from tests.time_limits import seconds


@pytest.fixture(autouse=True)
def searched_again() -> Iterator[None]:
    """Each test leaves the process as it was."""
    yield
    gc.unfreeze()
    gc.enable()


def test_what_is_imported_is_never_searched_for_cycles() -> None:
    before = gc.get_freeze_count()
    with fast_imports():
        assert not gc.isenabled()
        made = [[number] for number in range(100_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() - before > len(made)


def test_the_search_resumes_after_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError), fast_imports():
        import not_installed_anywhere  # noqa: F401 - meant to fail
    assert gc.isenabled()


def test_a_process_without_the_search_stays_without_it() -> None:
    gc.disable()
    with fast_imports():
        pass
    assert not gc.isenabled()


def test_ctrl_c_ends_a_process_that_imports_without_a_traceback() -> None:
    program = (
        "import time\nfrom malmoi.lazy_imports import fast_imports\n"
        "with fast_imports():\n    print('ready', flush=True)\n    time.sleep(30)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as made:
        assert made.stdout is not None
        assert made.stdout.readline() == "ready\n"
        made.send_signal(signal.SIGINT)
        _, said = made.communicate(timeout=seconds(20))
    assert (made.returncode, said) == (130, "malmoi: interrupted\n")


def test_ctrl_c_is_pythons_again_afterwards_and_another_handler_is_left_alone() -> None:
    def another(number: int, frame: object) -> None: ...

    before = signal.getsignal(signal.SIGINT)
    try:
        for handler, meanwhile in ((signal.default_int_handler, lazy_imports._exit_interrupted), (another, another)):
            signal.signal(signal.SIGINT, handler)
            with fast_imports():
                assert signal.getsignal(signal.SIGINT) is meanwhile
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
