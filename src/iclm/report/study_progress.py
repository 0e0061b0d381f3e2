"""Where a running study stands: a table for the terminal, lines where there is none."""

from __future__ import annotations

import time
from dataclasses import replace

from rich.console import Group
from rich.table import Table
from rich.text import Text

from iclm.studies.study.runner import State


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def standing(state: State, at_once: int) -> str:
    """How many jobs are done, and how long the others will take, in one line."""
    counts = [f"{len(state.done)} of {len(state.jobs)} jobs done"]
    for number, what in (
        (len(state.failed), "failed"),
        (len(state.busy), "with another process"),
        (len(state.running), "running"),
        (len(state.waiting), "left"),
    ):
        counts += [f"{number} {what}"] if number else []
    seconds = state.seconds_left(at_once)
    if seconds is not None and (state.running or state.waiting):
        counts.append(f"about {duration(seconds)} to go")
    return ", ".join(counts)


def progress_table(state: State, at_once: int) -> Group:
    """What runs and since when, what failed and why, and how long the rest will take.

    Args:
        at_once: jobs that run side by side.
    """
    # a job may end while the table is drawn
    state = replace(state, running=dict(state.running), failed=dict(state.failed), busy=set(state.busy))
    table = Table(box=None, show_header=False)
    for name, began in state.running.items():
        table.add_row(name, f"runs since {duration(time.monotonic() - began)}")
    for name, why in state.failed.items():
        table.add_row(name, Text(f"failed: {why}"))  # no markup: it may hold brackets
    for name in sorted(state.busy):
        table.add_row(name, "with another process")
    return Group(table, standing(state, at_once))


def progress_lines(state: State, at_once: int, shown: set[str]) -> list[str]:
    """What began and what ended since the last call; the last of the lines says where the study stands.

    Args:
        shown: what was said before; kept by the caller, empty at first.
    """
    found = []
    if not shown:
        shown.update(f"done {name}" for name in state.done)  # before this process began
        shown.add("")
    for name, record in state.done.items():
        found.append((f"done {name}", f"done {name} in {duration(record['total_seconds'])}"))
    found += [(f"failed {name}", f"failed {name}: {why}") for name, why in state.failed.items()]
    found += [(f"busy {name}", f"with another process: {name}") for name in sorted(state.busy)]
    found += [(f"began {name}", f"began {name}") for name in state.running]
    lines = [line for key, line in found if key not in shown]
    shown.update(key for key, _ in found)
    return [*lines, standing(state, at_once)] if lines else []
