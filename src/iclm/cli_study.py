"""The `iclm study` commands: run a grid of methods, data and seeds, and report what it found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from typer.core import TyperGroup

from iclm.cli_shared import Json, Overwrite, note, print_json, quiet_libraries, stdout
from iclm.errors import ConfigurationError


class _RunByDefault(TyperGroup):
    """A group whose first argument is the recipe to run, unless it names a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Run a study, methods x data x seeds: iclm study RECIPE --out STUDY; then: iclm study report STUDY.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a study in YAML.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; one that was begun is gone on with.")],
    jobs: Annotated[int, typer.Option(min=1, help="Jobs at a time.")] = 1,
    shard: Annotated[str, typer.Option(help="Part of the jobs to do: 1/4 is the first of four.")] = "1/1",
    only: Annotated[list[str] | None, typer.Option(help="Jobs whose name contains this, as in acre/lora.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Do what is missing of a study.

    Example: iclm study recipes/study.yaml --out runs/study --only acre/lora
    """
    quiet_libraries()
    from iclm.report.study import progress_line, progress_table
    from iclm.studies.study.recipe import load_study
    from iclm.studies.study.runner import Study, parse_shard

    study = Study(load_study(recipe), out, shard=parse_shard(shard), only=only or ())
    console = Console(stderr=True)
    shown: set[str] = set()

    def report(state: Any) -> None:
        if live is not None:
            live.update(progress_table(state, jobs))
            return
        for line in progress_line(state, jobs, shown):
            note(line)

    live: Live | None = None
    if plan:
        state = study.state
    elif console.is_terminal:
        with Live(progress_table(study.state, jobs), console=console) as live:
            state = study.run(at_once=jobs, report=report)
    else:
        state = study.run(at_once=jobs, report=report)
    summary = {
        "done": sorted(state.done),
        "failed": state.failed,
        "elsewhere": sorted(state.busy),
        "left": [job.name for job in state.waiting],
    }
    if as_json:
        print_json(summary)
    else:
        for name in summary["left"]:
            print(f"left: {name}")
        for name, why in state.failed.items():
            print(f"failed: {name}: {why}")
        print(f"{len(state.done)} of {len(state.jobs)} jobs are done")
    if state.failed:
        sys.exit(1)


@app.command()
def report(
    studies: Annotated[list[Path], typer.Argument(help="Folders of studies; shards of one study are taken together.")],
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl, jobs.jsonl, tables.md and plots.")],
    reference: Annotated[str, typer.Option(help="The method that others are compared with.")] = "lora",
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Collect the results of studies, compare the methods, and write tables and plots.

    Example: iclm study report runs/study --out results/study
    """
    quiet_libraries()
    from iclm.report.study import study_tables, write_report
    from iclm.studies.study.runner import collect

    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out} is a file; --out names a folder")
    found = write_report(collect(studies), out, reference=reference, resamples=resamples, overwrite=overwrite)
    if as_json:
        print_json(found)
        return
    for table in study_tables(found):
        stdout().print(table)
    note(f"written to {out}")
