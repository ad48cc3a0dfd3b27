"""Threads that wait leave their core to other programs."""

import re
import subprocess
import sys

import pytest

from malmoi.thread_waiting import WAIT_POLICY
from tests.launching import environment
from tests.time_limits import seconds


@pytest.mark.parametrize(("of_user", "taken"), [(None, "passive"), ("active", "active")])
def test_torchs_threads_sleep_while_they_wait_unless_the_user_says_otherwise(of_user: str | None, taken: str) -> None:
    """As the OpenMP library itself says that it has understood."""
    variables = {name: value for name, value in environment().items() if name not in (WAIT_POLICY, "GOMP_SPINCOUNT")}
    variables |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({WAIT_POLICY: of_user} if of_user else {})
    command = [sys.executable, "-c", "import malmoi; import torch"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=seconds(60))
    assert re.findall(rf"{WAIT_POLICY} *= *'(\w+)'", done.stderr) == [taken.upper()]
