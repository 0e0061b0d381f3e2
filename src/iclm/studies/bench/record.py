"""A benchmark as a file: the figures, and what was measured on what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iclm.data.files import atomic_write
from iclm.model.backbone import resolve_dtype
from iclm.studies.bench.contestants import Workload, versions
from iclm.studies.bench.timing import GOALS, Comparison, machine


def record(
    rows: Sequence[Comparison],
    command: str,
    workload: Workload,
    rounds: int,
    asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The figures of one command with everything that is needed to repeat it.

    Args:
        asked: what was scored in place of the workload's batches of random text.
    """
    load = {**asdict(workload), "dtype": str(resolve_dtype(workload.dtype)).removeprefix("torch.")}
    if asked is not None:
        load = {**{name: value for name, value in load.items() if name not in ("batch", "tokens")}, **asked}
    return {
        "command": command,
        "workload": load,
        "rounds": rounds,
        "machine": machine(),
        "versions": versions(),
        "goals": {row.name: GOALS[row.name][1] for row in rows if row.name in GOALS},
        "rows": [row.to_dict() for row in rows],
    }


def write(found: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Write a record as JSON, whole or not at all."""
    with atomic_write(out, overwrite=overwrite) as stream:
        json.dump(found, stream, indent=2, allow_nan=False)
        stream.write("\n")
