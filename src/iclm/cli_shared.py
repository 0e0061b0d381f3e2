"""What every command shares: its common options, results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer.core import TyperGroup

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
RunFolder = Annotated[Path, typer.Argument(help="Run folder that `iclm train` left.")]
Columns = Annotated[str | None, typer.Option(help="Columns of a table, e.g. '{prompt: question, answer: right}'.")]
Ask = Annotated[str, typer.Option(help="What files of RAVEN problems ask for: letter or panel.")]
Base = Annotated[str | None, typer.Option(help="The base model, if it is not where the run says.")]
Quantization = Annotated[
    str | None, typer.Option(help="none or nf4, to load the base otherwise than in training: nf4 needs a GPU.")
]


class RunByDefault(TyperGroup):
    """A group whose first argument is the recipe to run, unless it names a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the word run before a recipe."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


def stdout(wide: bool = True) -> Console:
    """Where results go; tables are not cut where there is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 100_000, soft_wrap=not wide, highlight=False, markup=False)


def note(text: str) -> None:
    """A line about what is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def note_unknown(names: Sequence[str], run: Any) -> None:
    """Say which domains of the data a run was not trained on, so that a misspelt one is seen."""
    if names and run.model.config.num_domains > 0:
        said = ", ".join(map(repr, names))
        note(
            f"the run was not trained on {said}, but on {', '.join(run.domains)}; say --data FILE=DOMAIN where it is one of them"
        )


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[..., None]]]:
    """Progress bars on stderr: call with a title and a total for a function that advances (or sets) the bar.

    A bar lives until its total is reached, so that what other libraries show in between is not disturbed.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    open_bars: list[Progress] = []

    def start(title: str, total: int) -> Callable[..., None]:
        bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        bar.start()
        open_bars.append(bar)
        task = bar.add_task(title, total=total)

        def tick(done: int, of: int | None = None) -> None:
            if of is None:
                bar.advance(task, done)
            else:
                bar.update(task, completed=done, total=of)
            if bar.finished:
                bar.stop()

        return tick

    try:
        yield start
    finally:
        for bar in open_bars:
            bar.stop()


def print_json(values: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(values, indent=2, allow_nan=False))


def report_written(summary: dict[str, Any], out: Path, as_json: bool) -> None:
    """What a command wrote: its summary, or one line."""
    if as_json:
        print_json(summary)
    else:
        counts = [f"{summary[name]} {name}" for name in ("problems", "examples", "queries") if name in summary]
        different = summary.get("different")
        differ = "" if different in (None, summary.get("problems")) else f", of which {different} differ,"
        print(f"{', '.join(counts)}{differ} written to {out}")


@contextmanager
def to_look_ahead(out: Path, apart: bool) -> Iterator[Path]:
    """A folder of jobs in which to find out what is left to do: itself, or a copy of what its jobs found, gone afterwards.

    Args:
        apart: a copy is needed, as something will be written.
    """
    if not apart:
        yield out
        return
    with TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        for file in (*out.glob("*.yaml"), *out.glob("jobs/*/*.json*")):
            (copy / file.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy / file.relative_to(out))
        yield copy


def report_jobs(state: Any, what: str, as_json: bool) -> None:
    """Where a grid of jobs stands, on stdout; ends the command with exit code 1 if one failed.

    Args:
        state: with `jobs`, `done`, `failed`, `busy` and `waiting`.
        what: the jobs are called.
    """
    left = [job.name for job in state.waiting]
    if as_json:
        print_json({"done": sorted(state.done), "failed": state.failed, "elsewhere": sorted(state.busy), "left": left})
    else:
        for name in left:
            print(f"left: {name}")
        for name in sorted(state.busy):
            print(f"done by another process: {name}")
        for name, why in state.failed.items():
            print(f"failed: {name}: {why}")
        print(f"{len(state.done)} of {len(state.jobs)} {what} are done")
    if state.failed:
        sys.exit(1)


def quiet_libraries() -> None:
    """Keep the libraries' own chatter from the terminal."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
