"""Progress on the terminal: a live bar, or plain lines where stderr is no terminal."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from malmoi.train.metrics.records import StepMetrics

SECONDS_BETWEEN_LINES = 20.0


class ProgressBar:
    """Progress of rank 0 on stderr; nothing on other ranks."""

    def __init__(self, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown, highlight=False, soft_wrap=True)
        self._live = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._live.add_task("training", total=None, loss="-", speed="-")
        self._began = self._last_line = time.monotonic()
        self._first_step = self._max_steps = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def start(self, first_step: int, max_steps: int) -> None:
        """Start the bar at `first_step` of `max_steps`."""
        self._first_step, self._max_steps = first_step, max_steps
        self._began = time.monotonic()
        self._live.update(self._task, total=max_steps, completed=first_step)
        self._live.start()

    def advance(self, done: int) -> None:
        """Set the number of steps done."""
        self._live.update(self._task, completed=done)

    def show_metrics(self, record: StepMetrics) -> None:
        """Show a logged step."""
        self._live.update(self._task, loss=f"{record.loss:.3f}", speed=f"{record.tokens_per_sec:,.0f}")
        now = time.monotonic()
        if self._live.disable and (now - self._last_line >= SECONDS_BETWEEN_LINES or record.step == self._max_steps):
            self._last_line = now
            left = (now - self._began) / max(1, record.step - self._first_step) * (self._max_steps - record.step)
            self._console.print(
                f"step {record.step}/{self._max_steps}  loss {record.loss:.3f}  lr {record.lr:.2e}  "
                f"{record.tokens_per_sec:,.0f} tokens/s  {left:,.0f} s left"
            )

    def show(self, text: str) -> None:
        """Show a record."""
        self._console.print(text, markup=False, soft_wrap=True)
