"""The `iclm study` commands: run a grid of methods, data and seeds, and report what it found."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

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
    help="Run a study, methods x data x seeds: iclm study RECIPE --out STUDY; then: iclm study report STUDY.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a study in YAML.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; one that was begun is gone on with.")],
    jobs: Annotated[int, typer.Option(min=1, help="Jobs at a time; with --ray of each machine, or of each GPU.")] = 1,
    shard: Annotated[str, typer.Option(help="Part of the jobs to do: 1/4 is the first of four.")] = "1/1",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Jobs whose name contains this or fits this pattern, as in acre/lora/ or '*/try-*'."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray", help="Run the jobs on a Ray cluster: auto, local or HOST:PORT; needs iclm[ray]."),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Cores of a job (--ray); default: all, shared by jobs.")
    ] = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a study or of a report: what is finished there is not done again."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Do what is missing of a study, on this machine or a Ray cluster; the word run may be left out.

    Example: iclm study run recipes/studies/ood.yaml --out runs/ood --only acre/lora/ --jobs 2
    """
    quiet_libraries()
    from iclm.report.study_progress import progress_lines, progress_table
    from iclm.studies.study.executors import Executor, LocalExecutor
    from iclm.studies.study.known import take_over
    from iclm.studies.study.recipe import load_study
    from iclm.studies.study.runner import Study, parse_shard

    if cpus is not None and ray_address is None:
        raise ConfigurationError("cpus is for jobs of a Ray cluster; give --ray, or leave it out")
    study = Study(load_study(recipe), out, shard=parse_shard(shard), only=only or ())
    with to_look_ahead(out, plan and bool(known)) as place:
        if place != out:
            study = Study(study.recipe, place, shard=study.shard, only=study.only)
        if known:
            note(f"{len(take_over(study, known))} jobs are known from {', '.join(map(str, known))}")
    if plan:
        report_jobs(study.state, "jobs", as_json)
        return
    console = Console(stderr=True)
    shown: set[str] = set()

    def report(state: Any) -> None:
        for line in progress_lines(state, executor.slots, shown):
            note(line)

    with ExitStack() as stack:
        executor: Executor = LocalExecutor(jobs)
        if ray_address is not None:
            from iclm.studies.study.ray_executor import RayExecutor

            executor = stack.enter_context(RayExecutor(ray_address, jobs=jobs, cpus=cpus))
        if console.is_terminal:
            stack.enter_context(
                Live(
                    get_renderable=lambda: progress_table(study.state, executor.slots),
                    console=console,
                    refresh_per_second=1,
                )
            )
            state = study.run(executor=executor)
        else:
            state = study.run(executor=executor, report=report)
    report_jobs(state, "jobs", as_json)


@app.command()
def report(
    studies: Annotated[
        list[Path], typer.Argument(help="Folders of studies or of a report; parts of one study are taken together.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results.jsonl, tries.jsonl, jobs.jsonl, questions.jsonl, comparisons.json, tables.md and plots."
        ),
    ] = None,
    write: Annotated[
        list[Path] | None,
        typer.Option(help="Markdown file whose blocks <!-- study: NAME --> ... <!-- /study --> become the tables."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The method that others are compared with; default: that of the study.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Collect the results of studies, compare the methods, and write tables and plots.

    STUDIES are folders of `iclm study`, or one that this command wrote: tables can be made from that alone. A job that several have counts once, as a
    report has it, else as the first folder.

    Example: iclm study report runs/study --out results/study --write docs/results.md
    """
    quiet_libraries()
    from iclm.report.blocks import read_markdown
    from iclm.report.study import check_blocks, check_out, write_blocks, write_report
    from iclm.report.study_tables import grids, not_run_line
    from iclm.studies.study.results import collect
    from iclm.studies.study.summary import summarise

    found = collect(studies)
    if out is not None:
        check_out(found, out, overwrite=overwrite)
    for path in write or ():  # before the bootstrap, which takes long
        read_markdown(path)
    summary = summarise(found, reference=reference, resamples=resamples)
    check_blocks(summary, write or ())
    if out is not None:
        write_report(found, summary, out, overwrite=overwrite)
        note(f"written to {out}")
    write_blocks(summary, write or ())
    for path in write or ():
        note(f"tables written into {path}")
    if summary["left_out"]:
        note(f"left out, done with other settings than those of the study: {', '.join(summary['left_out'])}")
    if as_json:
        print_json(summary)
        return
    for grid in grids(summary):
        stdout().print(grid.terminal())
    print(not_run_line(summary), end="")
