"""Where a command's words go: results to stdout, everything about the run to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPED_WIDTH = 240


def stdout() -> Console:
    """The console for results, which are shown as they are: "[INST]" is text, and no markup."""
    from rich.console import Console

    # A table that is piped on is not folded to 80 columns, so that each tensor stays on a line of its own.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def stderr() -> Console:
    """The console for progress, timings and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def write(text: str) -> None:
    """Write a piece of a model's text to stdout at once, as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def escape(text: str) -> str:
    """Text with its square brackets kept from being read as markup."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)


def error(message: str) -> None:
    """Print one error."""
    stderr().print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def warning(message: str) -> None:
    """Print one warning."""
    stderr().print(f"[bold yellow]warning:[/] {escape(message)}", soft_wrap=True)


def table(*columns: str) -> Table:
    """An empty table; a column named ">size" is "size", aligned to the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return made


def status(text: str) -> AbstractContextManager[object]:
    """A spinner on stderr while something takes its time."""
    return stderr().status(text)


@contextmanager
def bytes_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields the function (bytes done, bytes in all) that moves it."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def step_progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, at a terminal, with the time that remains; yields what moves it: (steps done, in all,
    words)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None, words="")
        yield lambda done, total, words: progress.update(task, completed=done, total=total, words=words)


@contextmanager
def tokens_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """The function (tokens done, tokens in all) that shows a bar on stderr, at a terminal, until all are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(title, total=None)

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        bar.start()
        if done == total:
            bar.stop()

    try:
        yield show
    finally:
        bar.stop()


def size(nbytes: float) -> str:
    """Bytes in a unit that reads well: 1.50 GiB."""
    if nbytes < 1024:
        return f"{nbytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        nbytes /= 1024
        if nbytes < 1024 or unit == "GiB":
            break
    return f"{nbytes:.2f} {unit}"
