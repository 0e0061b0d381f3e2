"""The `iclm continual` commands: learn tasks one after another, and report what was kept, forgotten and carried over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from iclm.cli_shared import Json, Overwrite, note, print_json, quiet_libraries, stdout


class _RunByDefault(TyperGroup):
    """A group whose first argument is the recipe to run, unless it names a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
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
    only: Annotated[list[str] | None, typer.Option(help="Jobs whose name contains this, as in short/iclm.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Do what is missing of all methods, orders and seeds; the word run may be left out.

    Example: iclm continual recipes/continual/short.yaml --out runs/short --only iclm --task-boundaries unknown
    """
    quiet_libraries()
    from iclm.studies.continual.recipe import load_continual, with_boundaries
    from iclm.studies.continual.runner import Experiment

    experiment = Experiment(with_boundaries(load_continual(recipe), boundaries), recipe.stem, out, only or ())
    standing = experiment.standing
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

    if not plan:
        standing = experiment.run(jobs, report)
    summary = {
        "done": sorted(standing.done),
        "failed": standing.failed,
        "elsewhere": sorted(standing.busy),
        "left": [job.name for job in standing.waiting],
    }
    if as_json:
        print_json(summary)
    else:
        for name in summary["left"]:
            print(f"left: {name}")
        for name, why in standing.failed.items():
            print(f"failed: {name}: {why}")
        print(f"{len(standing.done)} of {len(standing.jobs)} sequences are done")
    if standing.failed:
        sys.exit(1)
