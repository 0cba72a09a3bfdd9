"""Progress on stderr: a live bar in a terminal, a line every ten seconds in a log file."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_INTERVAL = 10.0  # seconds


class Bar:
    """Progress of one stage: its first metric (the loss in training), tokens per second and the remaining time."""

    def __init__(self, console: Console, title: str):
        self._console, self._title = console, title
        self._progress: Progress | None = None
        self._printed, self._first = time.perf_counter(), (0, time.perf_counter())

    def __enter__(self) -> "Bar":
        if self._console.is_terminal:
            columns = [
                SpinnerColumn(),
                TextColumn("[bold]{task.description:<16}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:>6,}/{task.total:,}"),
                TextColumn("{task.fields[figure]}  {task.fields[speed]:>8,.0f} tokens/s"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            ]
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=None, figure="", speed=0.0, visible=False)
        return self

    def update(self, step: int, total: int, metrics: dict[str, float]) -> None:
        (name, value), speed = next(iter(metrics.items())), metrics["tokens_per_second"]
        figure = f"{name} {value:6.3f}"
        if self._progress:
            self._progress.update(self._task, completed=step, total=total, figure=figure, speed=speed, visible=True)
            return
        now = time.perf_counter()
        if not self._first[0]:
            self._first = (step, now)
        if now - self._printed >= LINE_INTERVAL:
            self._printed = now
            left = (total - step) * (now - self._first[1]) / max(step - self._first[0], 1)
            self._console.print(
                f"{self._title:<16} step {step:,}/{total:,}  {figure}  {speed:,.0f} tokens/s  {left:.0f} s left",
                highlight=False,
            )

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress:
            self._progress.stop()
