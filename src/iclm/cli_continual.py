"""The `iclm continual` commands: learn tasks one after another, and report what was kept, forgotten and carried over."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from iclm.cli_shared import (
    Json,
    Overwrite,
    RunByDefault,
    note,
    print_json,
    quiet_libraries,
    report_jobs,
    stdout,
    to_look_ahead,
)
from iclm.errors import ConfigurationError

app = typer.Typer(
    cls=RunByDefault,
    help="Learn tasks one after another: iclm continual RECIPE --out OUT; then: iclm continual report OUT.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Boundaries = Annotated[
    str | None,
    typer.Option("--task-boundaries", help="known or unknown: whether it is told where a task begins."),
]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a sequence in YAML.")],
    out: Annotated[Path, typer.Option(help="Folder to make; one that was begun is gone on with.")],
    boundaries: Boundaries = None,
    only: Annotated[list[str] | None, typer.Option(help="Jobs whose name contains this, as in forward/iclm/.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    known: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of sequences or of a report: what is finished there is not done again."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Do what is missing of all methods, orders and seeds; the word run may be left out.

    Example: iclm continual run recipes/continual/short.yaml --out runs/short --only forward/iclm/ --task-boundaries unknown
    """
    quiet_libraries()
    from iclm.studies.continual.known import take_over
    from iclm.studies.continual.recipe import load_continual, with_boundaries
    from iclm.studies.continual.runner import Experiment

    experiment = Experiment(with_boundaries(load_continual(recipe), boundaries), recipe.stem, out, only or ())
    with to_look_ahead(out, plan and bool(known)) as place:
        if place != out:
            experiment = Experiment(experiment.recipe, recipe.stem, place, only or ())
        if known:
            note(f"{len(take_over(experiment, known))} sequences are known from {', '.join(map(str, known))}")
    if plan:
        report_jobs(experiment.standing, "sequences", as_json)
        return
    shown: set[str] = set()

    def report(state: Any) -> None:
        over = len(state.done) + len(state.failed) + len(state.busy)
        lines = [f"{name}: done, {done['total_seconds']:.0f} s" for name, done in state.done.items()]
        lines += [f"{name}: failed: {why}" for name, why in state.failed.items()]
        lines += [f"{name}: running ({over} of {len(state.jobs)} are over)" for name in sorted(state.running)]
        for line in lines:
            key = line.partition(" (")[0]
            if key not in shown:
                shown.add(key)
                note(line)

    standing = experiment.run(jobs, report)
    report_jobs(standing, "sequences", as_json)


@app.command()
def boundaries(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a sequence in YAML.")],
    out: Annotated[Path, typer.Option(help="File to write, one JSON object a line.")],
    margins: Annotated[str | None, typer.Option(help="Margins between commas; default: 0.5 to 10.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure what the router calls new by threshold, and how many modules a stream opens; nothing is trained.

    Example: iclm continual boundaries recipes/continual/long.yaml --out boundaries.jsonl
    """
    quiet_libraries()
    from iclm.data.files import atomic_write
    from iclm.report.continual import grids
    from iclm.studies.continual.boundaries import MARGINS, boundary_rows
    from iclm.studies.continual.recipe import files_of, load_continual
    from iclm.studies.continual.results import Found, summarise

    try:
        chosen = MARGINS if margins is None else tuple(float(part) for part in margins.split(","))
    except ValueError:
        chosen = ()
    if not chosen or not all(0 < margin < math.inf for margin in chosen):
        raise ConfigurationError(
            f"--margins is {margins!r}; give finite numbers above 0 between commas, such as 1,1.5,2"
        )
    loaded = load_continual(recipe)
    if out.resolve() in files_of(recipe):
        raise ConfigurationError(f"--out {out} is a file that the recipe {recipe} is made of; choose another --out")
    with atomic_write(out, overwrite=overwrite) as stream:
        rows = list(boundary_rows(loaded, recipe.stem, chosen, note))
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    summary = summarise(Found(boundaries=rows))
    if as_json:
        print_json(summary["boundaries"])
        return
    for grid in grids(summary):
        stdout().print(grid.terminal())
    note(f"written to {out}")


@app.command()
def report(
    experiments: Annotated[
        list[Path],
        typer.Argument(help="Folders of iclm continual, reports of them, and files of iclm continual boundaries."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for rows.jsonl, sequences.jsonl, boundaries.jsonl, summary.json, tables.md and plots."
        ),
    ] = None,
    write: Annotated[
        list[Path] | None,
        typer.Option(
            help="Markdown file whose blocks <!-- continual: NAME --> ... <!-- /continual --> become the tables."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Collect the finished sequences, and write accuracy matrices, metrics and plots.

    Example: iclm continual report runs/short runs/long --out runs/report
    """
    quiet_libraries()
    from iclm.report.continual import check_blocks, check_out, grids, write_blocks, write_report
    from iclm.studies.continual.results import collect, summarise

    found = collect(experiments)
    if found.left_out:
        note(f"left out, done with other settings than those of the recipe: {', '.join(found.left_out)}")
    summary = summarise(found)
    if out is not None:
        check_out(found, out, overwrite=overwrite)
    check_blocks(summary, write or ())
    if out is not None:
        write_report(found, summary, out, overwrite=overwrite)
        note(f"written to {out}")
    write_blocks(summary, write or ())
    for path in write or ():
        note(f"tables written into {path}")
    if as_json:
        print_json(summary)
        return
    for grid in grids(summary):
        stdout().print(grid.terminal())
