"""What a person sees while a run trains: a live bar in a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from train.metrics import StepMetrics

SECONDS_BETWEEN_LINES = 20.0


class TrainingDisplay:
    """Shows the training of rank 0 on stderr; on other ranks it shows nothing."""

    def __init__(self, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown, highlight=False)
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
        self._first_step = self._steps = 0

    def __enter__(self) -> "TrainingDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def start(self, first_step: int, steps: int) -> None:
        """Begin the bar at `first_step` of `steps`."""
        self._first_step, self._steps = first_step, steps
        self._began = time.monotonic()
        self._live.update(self._task, total=steps, completed=first_step)
        self._live.start()

    def step(self, done: int) -> None:
        """Note that `done` steps are done."""
        self._live.update(self._task, completed=done)

    def metrics(self, line: StepMetrics) -> None:
        """Show a logged step."""
        self._live.update(self._task, loss=f"{line.loss:.3f}", speed=f"{line.tokens_per_second:,.0f}")
        now = time.monotonic()
        if self._live.disable and (now - self._last_line >= SECONDS_BETWEEN_LINES or line.step == self._steps):
            self._last_line = now
            left = (now - self._began) / max(1, line.step - self._first_step) * (self._steps - line.step)
            self._console.print(
                f"step {line.step}/{self._steps}  loss {line.loss:.3f}  lr {line.lr:.2e}  "
                f"{line.tokens_per_second:,.0f} tokens/s  {left:,.0f} s left"
            )

    def note(self, text: str) -> None:
        """Show a line."""
        self._console.print(text, markup=False, soft_wrap=True)
