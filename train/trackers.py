"""Accelerate's trackers, by the names that settings give them."""

from collections.abc import Sequence

from accelerate.tracking import LoggerType, get_available_trackers

from configs.errors import BadInput, nearest_name_hint


def require_trackers(names: Sequence[str]) -> None:
    """See that every tracker that is asked for is installed.

    Raises:
        BadInput: Accelerate knows none of that name, or its package is missing.
    """
    known = [str(tracker.value) for tracker in LoggerType if tracker.value != "all"]
    for name in names:
        if name not in known:
            raise BadInput(f"train.trackers {name}: no such tracker{nearest_name_hint(name, known)}")
        if name not in [str(tracker.value) for tracker in get_available_trackers()]:
            raise BadInput(f"train.trackers {name}: its package is not installed; `pip install {name}`")
