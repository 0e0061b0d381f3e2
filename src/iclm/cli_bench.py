"""The `iclm bench` commands: speed, memory and learning beside plain LoRA, PEFT and X-LoRA."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from iclm.cli_shared import Json, Overwrite, note, print_json, progress_bars, quiet_libraries, stdout
from iclm.data.files import check_file
from iclm.errors import ConfigurationError

app = typer.Typer(help="Measure speed, memory and learning.", no_args_is_help=True, rich_markup_mode=None)

Model = Annotated[str, typer.Option(help="Base model: smollm2-135m, a folder, a GGUF file or a hub id.")]
Modules = Annotated[str, typer.Option("--k", help="Numbers of domain modules, as in 2,6,16.")]
Against = Annotated[str, typer.Option(help="Rivals: lora, peft-lora, xlora; our plain LoRA is always there.")]
Batch = Annotated[int, typer.Option(min=1, help="Examples in a batch.")]
Tokens = Annotated[int, typer.Option(min=3, help="Tokens of an example.")]
Targets = Annotated[str, typer.Option(help="Adapted linear layers: attention or all-linear.")]
Dtype = Annotated[str, typer.Option(help="Of the base's weights: auto, float32, bfloat16 or float16.")]
Rounds = Annotated[int, typer.Option(help="Rounds that count; the median needs at least five.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the layers of our own models.")]
Out = Annotated[Path | None, typer.Option(help="JSON file to write, with what was measured on what.")]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"--k is {text!r}; give whole numbers between commas, such as 2,6,16") from error


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _workload(model: str, batch: int, tokens: int, targets: str, dtype: str) -> Any:
    from iclm.studies.bench.contestants import Workload

    return Workload(base=model, batch=batch, tokens=tokens, targets=targets, dtype=dtype)


def _finish(
    rows: list[Any],
    workload: Any,
    rounds: int,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    asked: dict[str, Any] | None = None,
) -> None:
    from iclm.report.bench import bench_caption, bench_table
    from iclm.studies.bench.record import record, write

    found = record(rows, shlex.join(["iclm", *sys.argv[1:]]), workload, rounds, asked)
    if out is not None:
        write(found, out, overwrite=overwrite)
    if as_json:
        print_json(found["rows"])
        return
    stdout().print(bench_table(found))
    note(bench_caption(found))


def _check_out(out: Path | None, overwrite: bool) -> None:
    if out is not None:
        check_file(out, overwrite=overwrite)


@app.command()
def step(
    model: Model = "smollm2-135m",
    k: Modules = "2,6,16",
    against: Against = "lora,peft-lora",
    batch: Batch = 16,
    tokens: Tokens = 96,
    targets: Targets = "attention",
    dtype: Dtype = "auto",
    rounds: Rounds = 7,
    compiled: Compiled = False,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Time a training step of an ICLM beside plain LoRA, PEFT's LoRA and X-LoRA.

    Example: iclm bench step --k 2,16 --against lora,peft-lora,xlora --json
    """
    quiet_libraries()
    from iclm.studies.bench import step as bench

    _check_out(out, overwrite)
    workload = _workload(model, batch, tokens, targets, dtype)
    with progress_bars() as bars:
        rows = bench.run(workload, _numbers(k), _names(against), rounds=rounds, compiled=compiled, note=note, tick=bars)
    _finish(rows, workload, rounds, out, overwrite, as_json)


@app.command()
def generate(
    model: Model = "smollm2-135m",
    k: Modules = "2,6,16",
    batch: Batch = 8,
    tokens: Tokens = 96,
    targets: Targets = "attention",
    dtype: Dtype = "auto",
    rounds: Rounds = 7,
    compiled: Compiled = False,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Time reading a prompt and decoding a token of an ICLM beside plain LoRA.

    Example: iclm bench generate --k 2 --batch 8
    """
    quiet_libraries()
    from iclm.studies.bench import generate as bench

    _check_out(out, overwrite)
    workload = _workload(model, batch, tokens, targets, dtype)
    with progress_bars() as bars:
        rows = bench.run(workload, _numbers(k), rounds=rounds, compiled=compiled, tick=bars)
    _finish(rows, workload, rounds, out, overwrite, as_json)


@app.command()
def evaluate(
    model: Model = "smollm2-135m",
    k: Modules = "2",
    problems: Annotated[int, typer.Option(min=1, help="ACRE problems a format, four questions each.")] = 4,
    targets: Targets = "attention",
    dtype: Dtype = "auto",
    rounds: Rounds = 5,
    compiled: Compiled = False,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Time choice scoring beside scoring each (prompt, choice) pair on its own.

    Example: iclm bench evaluate --problems 8
    """
    quiet_libraries()
    from iclm.studies.bench import evaluate as bench
    from iclm.studies.bench.contestants import Workload

    _check_out(out, overwrite)
    workload = Workload(base=model, targets=targets, dtype=dtype)
    with progress_bars() as bars:
        rows = bench.run(workload, _numbers(k), rounds=rounds, problems=problems, compiled=compiled, tick=bars)
    _finish(rows, workload, rounds, out, overwrite, as_json, bench.asked(problems))


@app.command()
def memory(
    model: Model = "smollm2-135m",
    k: Modules = "2,6,16",
    against: Annotated[
        str, typer.Option(help="Rivals: lora, peft-lora; our plain LoRA is always there.")
    ] = "lora,peft-lora",
    batch: Batch = 16,
    tokens: Tokens = 96,
    targets: Targets = "attention",
    dtype: Dtype = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Processes a contestant.")] = 1,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure the peak memory of training of an ICLM beside plain LoRA, each in a process of its own.

    Example: iclm bench memory --k 2,16
    """
    quiet_libraries()
    from iclm.studies.bench import memory as bench

    _check_out(out, overwrite)
    workload = _workload(model, batch, tokens, targets, dtype)
    with progress_bars() as bars:
        rows = bench.run(workload, _numbers(k), _names(against), rounds=rounds, tick=bars)
    _finish(rows, workload, rounds, out, overwrite, as_json)


@app.command()
def learning(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides of the shipped recipe.")] = None,
    splits: Annotated[str, typer.Option(help="Shares of the layers below the split.")] = "0,0.25,0.5,0.75",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each contestant.")] = 1,
    points: Annotated[int, typer.Option(min=1, help="Evaluations of a training.")] = 4,
    out: Annotated[Path | None, typer.Option(help="JSON lines to write; trainings that are there are kept.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train an ICLM of each split, and plain LoRA, and compare validation accuracy by examples and by seconds.

    Example: iclm bench learning --splits 0,0.5 --out learning.jsonl
    """
    quiet_libraries()
    from iclm.report.bench import learning_table
    from iclm.studies.bench import learning as bench

    try:
        shares = [float(part) for part in splits.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"--splits is {splits!r}; give numbers between commas, such as 0,0.5") from error
    with progress_bars() as bars:
        rows = bench.run(
            out,
            overrides=overrides or (),
            splits=shares,
            seeds=range(seeds),
            points=points,
            overwrite=overwrite,
            progress=bars,
        )
    if as_json:
        print_json([{name: value for name, value in row.items() if name != "recipe"} for row in rows])
    else:
        stdout().print(learning_table(rows))
