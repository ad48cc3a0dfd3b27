"""Standard streams that a command can rely on: open, read by somebody or not, and able to hold every character."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ReaderGone(Exception):
    """Whoever read this command's output has gone, as `head` does when it has enough."""


class _ForItsReader(io.FileIO):
    """The output of a command that is run for it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            # What is left in buffers goes nowhere, here and in libraries that write to the descriptor themselves.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise ReaderGone from None


class _ForTheRecord(io.FileIO):
    """The output of a command that is run for what it writes to disk, and continues whoever reads it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            # The reader has gone, the terminal was closed or the log's disk is full: what is written here is in the
            # run's files too, and a failure would cost the run.
            return len(memoryview(data))


@contextmanager
def reliable_streams(outlives_reader: bool) -> Iterator[None]:
    """Give this process standard streams that are open and that print every character, escaped where their encoding
    lacks it, until the block ends; streams that somebody replaced stay.

    Args:
        outlives_reader: whether what cannot be written is dropped, or ends the command by `ReaderGone`.
    """
    _open_closed_descriptors()
    kind = _ForTheRecord if outlives_reader else _ForItsReader
    before = sys.stdout, sys.stderr
    try:
        if sys.stdout is sys.__stdout__:
            sys.stdout = _stream(1, before[0], kind)
        if sys.stderr is sys.__stderr__:
            sys.stderr = _stream(2, before[1], kind)
        yield
    finally:
        for stream, earlier in zip((sys.stdout, sys.stderr), before, strict=True):
            if stream is not earlier:
                stream.flush()
        # A closed stream is none; the descriptor stays open, so that no file takes its place.
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Open the standard descriptors that are closed (`>&-`): the next file that is opened would become one of them."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def _stream(descriptor: int, earlier: io.TextIOWrapper | Any, kind: type[io.FileIO]) -> io.TextIOWrapper:
    if earlier is not None:
        earlier.flush()
    raw = kind(descriptor, "wb", closefd=False)
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffered,
        encoding="utf-8" if earlier is None else earlier.encoding,
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )
