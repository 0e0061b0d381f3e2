"""The `iclm data` commands: make, render and check problems; one function a command, no logic of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from iclm.cli_shared import (
    Columns,
    Json,
    Overwrite,
    note,
    print_json,
    progress_bars,
    quiet_libraries,
    report_written,
    stdout,
)

app = typer.Typer(help="Make, render and check problems.", no_args_is_help=True, rich_markup_mode=None)


@app.command("acre")
def data_acre(
    regime: Annotated[str, typer.Option(help="IID, Comp or Sys.")],
    out: Annotated[Path, typer.Option(help="File to write, in the official JSON.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    problems: Annotated[int, typer.Option(help="How many problems.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Generate ACRE problems.

    Example: iclm data acre --regime IID --split train --problems 6000 --seed 0 --out IID_train.json
    """
    from iclm.data.commands import generate_acre

    with progress_bars() as bars:
        summary = generate_acre(regime, split, problems, seed, out, overwrite, bars("problems", problems))
    report_written(summary, out, as_json)


@app.command("raven")
def data_raven(
    config: Annotated[str, typer.Option(help="center_single, distribute_four, ..., or all.")],
    out: Annotated[Path, typer.Option(help="File to write; with --form xml the folder to make.")],
    answers: Annotated[str, typer.Option(help="Answer set: raven, iraven or fair.")] = "iraven",
    problems: Annotated[int, typer.Option(help="How many problems of each configuration.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    split: Annotated[str | None, typer.Option(help="train, val or test; default: all.")] = None,
    form: Annotated[str, typer.Option(help="jsonl, or xml: one official XML file a problem.")] = "jsonl",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Generate RAVEN problems.

    Example: iclm data raven --config center_single --answers iraven --problems 1000 --seed 0 --out iraven.jsonl
    """
    from iclm.data.commands import generate_raven

    with progress_bars() as bars:
        tick = bars("problems", problems)
        summary = generate_raven(config, answers, problems, seed, out, split, overwrite, tick, form)
    report_written(summary, out, as_json)


@app.command("corr2cause")
def data_corr2cause(
    variables: Annotated[list[int], typer.Option(help="Number of variables, 2 to 6; several times for several.")],
    out: Annotated[Path, typer.Option(help="Evals JSONL file to write.")],
    problems: Annotated[
        int | None, typer.Option(help="How many examples; beyond those there are they come again. Default: all, once.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    variant: Annotated[str, typer.Option(help="official, renamed or paraphrased.")] = "official",
    split: Annotated[str | None, typer.Option(help="train, val or test: no premise is in two; default: all.")] = None,
    balanced: Annotated[bool, typer.Option("--balanced", help="As many valid hypotheses as invalid ones.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Generate CORR2CAUSE examples: does a causal relation follow from correlations and independences?

    Example: iclm data corr2cause --variables 4 --variables 5 --problems 5000 --out corr2cause.jsonl
    """
    from iclm.data.corr2cause import write_corr2cause

    with progress_bars() as bars:
        summary = write_corr2cause(
            out,
            variables,
            problems,
            seed,
            variant,
            overwrite,
            bars("examples", problems or 0),
            balanced=balanced,
            split=split,
        )
    report_written(summary, out, as_json)


@app.command("pvr")
def data_pvr(
    out: Annotated[Path, typer.Option(help="Evals JSONL file to write.")],
    complexity: Annotated[int, typer.Option(help="0, 1 or 2: the pointer names that many values and one.")] = 0,
    aggregation: Annotated[str, typer.Option(help="mod_sum, min, max, median or majority.")] = "mod_sum",
    split: Annotated[str, typer.Option(help="train, val, test or holdout.")] = "train",
    problems: Annotated[int, typer.Option(help="How many problems.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    shift: Annotated[str, typer.Option(help="What is held out: position or permutation.")] = "position",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Generate pointer-value-retrieval problems.

    Example: iclm data pvr --complexity 1 --aggregation mod_sum --split holdout --problems 1000 --out pvr.jsonl
    """
    from iclm.data.pvr import write_pvr

    with progress_bars() as bars:
        summary = write_pvr(
            out, complexity, aggregation, split, problems, seed, overwrite, bars("problems", problems), shift=shift
        )
    report_written(summary, out, as_json)


@app.command("render")
def data_render(
    file: Annotated[Path, typer.Argument(help="File of problems.")],
    format: Annotated[str, typer.Option(help="text or symbolic.")],
    out: Annotated[Path, typer.Option(help="Evals JSONL file to write.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Keep the shift of Comp, shuffle objects in panels.")
    ] = False,
    regime: Annotated[str | None, typer.Option(help="Regime, if the file's name does not tell.")] = None,
    split: Annotated[str | None, typer.Option(help="Split, if the file's name does not tell.")] = None,
    extras: Annotated[bool, typer.Option("--extras", help="Also write query type and problem of each line.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the shuffles of --strict.")] = 0,
    open_answer: Annotated[bool, typer.Option("--open", help="RAVEN: ask for the panel instead of a letter.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Render problems as evals JSONL.

    Example: iclm data render IID_val.json --format text --strict --out IID_val_text.jsonl
    """
    from iclm.data.commands import render_file

    summary = render_file(
        file, format, "strict" if strict else "official", out, regime, split, extras, seed, overwrite, open_answer
    )
    report_written(summary, out, as_json)


@app.command("solve")
def data_solve(file: Annotated[Path, typer.Argument(help="File of problems.")], as_json: Json = False) -> None:
    """Compare every label of a file with the exact solver; exit code 1 if it refutes one.

    Example: iclm data solve IID_val.json
    """
    from iclm.data.commands import solve_file

    result = solve_file(file)
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        print(result)
        for line in result.disagreements:
            note(line)
    if result.wrong:
        raise typer.Exit(1)


@app.command("conformance")
def data_conformance(
    folder: Annotated[Path, typer.Argument(help="Folder with the official files in acre/ and raven/.")],
    as_json: Json = False,
) -> None:
    """Check solvers, renderings and generators against the official files in a folder; exit code 1 if one does not pass.

    Example: iclm data conformance official/
    """
    from iclm.data.conformance import conformance
    from iclm.report.tables import conformance_table

    with progress_bars() as bars:
        rows = conformance(folder, bars("files", 0))
    if as_json:
        print_json(rows)
    else:
        stdout().print(conformance_table(rows))
        for row in rows:
            for line in () if row["passed"] else row["notes"]:
                note(f"{row['file']}: {line}")
    if not all(row["passed"] for row in rows):
        raise typer.Exit(1)


@app.command("audit")
def data_audit(
    files: Annotated[list[str], typer.Argument(help="Files, each a split; FILE or NAME=FILE.")],
    format: Annotated[str | None, typer.Option(help="Rendering of files of problems: text or symbolic.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Strict rendering of ACRE files.")] = False,
    tokenizer: Annotated[str | None, typer.Option(help="Base model whose tokens are counted; default: words.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Context length to check the prompts against.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first examples of each file.")] = None,
    columns: Columns = None,
    as_json: Json = False,
) -> None:
    """Tell what a data set leaks: label balance, duplicates, lengths, and cheap strategies that should fail.

    Example: iclm data audit IID_train.jsonl IID_val.jsonl --context 2048
    """
    from iclm.data.audit.command import audit_files

    counter = None
    if tokenizer is not None:
        quiet_libraries()
        from iclm.model import load_tokenizer

        counter = load_tokenizer(tokenizer)
    with progress_bars() as bars:
        report = audit_files(
            files,
            format=format,
            objects="strict" if strict else "official",
            tokenizer=counter,
            context=context,
            limit=limit,
            columns=columns,
            progress=bars,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)
