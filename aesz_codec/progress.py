"""Show how far a conversion or verification has come: bars in a terminal or a notebook, or lines of JSON.

Each is a context manager whose value is called with every `Progress`, as `convert` and `verify` do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "bars", "json_lines"]

_LABELS = {"range": "range of", "write": "compressing", "verify": "checking"}


@dataclass(frozen=True)
class Progress:
    """How far a conversion or verification has come.

    Attributes
    ----------
    phase : {"range", "write", "verify"}
    variable : str
    done, total : int
        Bytes of the variable, decoded.
    stored : int
        Bytes that what is done takes in the store; 0 in other phases than "write".
    """

    phase: str
    variable: str
    done: int
    total: int
    stored: int = 0


@contextmanager
def bars(console: Console | None = None) -> Iterator[Callable[[Progress], None]]:
    """Draw one bar a variable and phase, with throughput, ratio so far and time left.

    Parameters
    ----------
    console : rich.console.Console, optional
        Default: that of standard error. Nothing is drawn where it is neither a terminal nor a notebook.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    console = console or Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield lambda event: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[ratio]}"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as drawn:
        tasks: dict[tuple[str, str], Any] = {}

        def progress(event: Progress) -> None:
            key = (event.phase, event.variable)
            if key not in tasks:
                title = f"{_LABELS[event.phase]} {event.variable}"
                tasks[key] = drawn.add_task(title, total=event.total, ratio="")
            ratio = f"{event.done / event.stored:.1f} : 1" if event.stored else ""
            drawn.update(tasks[key], completed=event.done, visible=event.done < event.total, ratio=ratio)

        yield progress


@contextmanager
def json_lines(stream: TextIO | None = None) -> Iterator[Callable[[Progress], None]]:
    """Write one JSON object a line for every event.

    Its keys: ``phase``, ``variable``, ``done`` and ``total`` (bytes, decoded), ``stored`` (bytes in the store),
    ``ratio`` (so far; null while nothing is stored), ``throughput`` (bytes per second since the phase of the
    variable began) and ``remaining`` (seconds; null while unknown).

    Parameters
    ----------
    stream : text file, optional
        Default: standard error.
    """
    began: dict[tuple[str, str], tuple[float, int]] = {}

    def progress(event: Progress) -> None:
        now = time.monotonic()
        since, already = began.setdefault((event.phase, event.variable), (now, event.done))
        speed = (event.done - already) / (now - since) if now > since else 0.0
        line = {
            "phase": event.phase,
            "variable": event.variable,
            "done": event.done,
            "total": event.total,
            "stored": event.stored,
            "ratio": round(event.done / event.stored, 4) if event.stored else None,
            "throughput": round(speed),
            "remaining": round((event.total - event.done) / speed, 1) if speed else None,
        }
        print(json.dumps(line), file=stream or sys.stderr, flush=True)

    yield progress
