"""The report of a study as a folder.

OUT/results.jsonl, tries.jsonl, jobs.jsonl, questions.jsonl     what was found (`iclm.studies.study.results`)
OUT/comparisons.json                                            all figures, intervals and comparisons
OUT/tables.md                                                   all tables, each under its name, and what was not run
OUT/*.png                                                       plots (`iclm.report.study_plots`)
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iclm.data.files import atomic_write
from iclm.errors import ConfigurationError
from iclm.report.blocks import check_files, put_plots, read_markdown, with_blocks
from iclm.report.study_plots import write_plots
from iclm.report.study_tables import grids, not_run_line, setup_line, texts
from iclm.studies.study.results import Collected

COMPARISONS, TABLES = "comparisons.json", "tables.md"


def check_out(found: Collected, out: Path, *, overwrite: bool) -> None:
    """Raise `ConfigurationError` if a report cannot be written to a folder; changes nothing."""
    check_files((*found.files(), COMPARISONS, TABLES), out, overwrite=overwrite)


def write_report(found: Collected, summary: dict[str, Any], out: Path, *, overwrite: bool = False) -> list[Path]:
    """Write a report; each file appears whole, and none before all are made.

    Args:
        found: the finished jobs.
        summary: what `iclm.studies.study.summary.summarise` found in them.
        out: a folder, made if need be; other files in it stay, but for the plots of an earlier report.

    Returns:
        The files written.

    Raises:
        ConfigurationError: a file exists and is not to be replaced, or cannot be written.
    """
    check_out(found, out, overwrite=overwrite)
    made = out.resolve().parent / f".iclm-{secrets.token_hex(8)}.tmp"
    try:
        try:
            made.mkdir(parents=True)
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot write {out}: {error.strerror}") from error
        write_plots(summary, made)
        plots = put_plots(made, out, out / COMPARISONS, overwrite=overwrite)
        contents = {
            **found.files(),
            COMPARISONS: _json({**summary, "plots": plots}),
            TABLES: tables_markdown(summary),
        }
        for name, text in contents.items():
            with atomic_write(made / name) as stream:
                stream.write(text)
        for name in contents:
            os.replace(made / name, out / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return [out / name for name in sorted([*plots, *contents])]


def _json(summary: dict[str, Any]) -> str:
    """The summary as JSON, a line for each figure and comparison."""
    parts = []
    for key, value in summary.items():
        if isinstance(value, list) and value:
            entries = ",\n  ".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in value)
            parts.append(f"{json.dumps(key)}: [\n  {entries}\n ]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def tables_markdown(summary: dict[str, Any]) -> str:
    """All tables of a study as one Markdown text."""
    lines = ["# Tables of the study\n", setup_line(summary), not_run_line(summary)]
    for grid in grids(summary):
        lines += [f"## {grid.name}\n", grid.title[:1].upper() + grid.title[1:] + "\n", grid.markdown()]
    return "\n".join(lines)


def check_blocks(summary: dict[str, Any], files: Iterable[Path]) -> dict[Path, str]:
    """The text that each Markdown file is to have: its study blocks replaced by the tables of their names.

    Raises:
        ConfigurationError: a file that cannot be read or has no block, a block of an unknown name or one that is not closed.
    """
    known = texts(summary)
    return {path: with_blocks(read_markdown(path), known, path) for path in files}


def write_blocks(summary: dict[str, Any], files: Iterable[Path]) -> None:
    """Replace the study blocks of Markdown files by the tables of their names: in all files, or on a fault in none.

    Raises:
        ConfigurationError: as `check_blocks`, or a file that cannot be written.
    """
    for path, text in check_blocks(summary, files).items():
        with atomic_write(path, overwrite=True) as stream:
            stream.write(text)
