"""The command line: one function a command, no logic of its own.

    iclm quickstart | data acre|raven|... | train | evaluate | diagnose | report | estimators | generate |
    bench step|... | plan | study | continual | modules RUN list|...

Progress goes to stderr, results to stdout. Exit code 0: done; 2: bad input, said in one line; 1: a check found something
wrong, a job failed, or a fault of ours.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from iclm import cli_bench, cli_continual, cli_data, cli_modules, cli_plan, cli_study
from iclm.cli_shared import (
    Ask,
    Base,
    Columns,
    Json,
    Overwrite,
    Quantization,
    RunFolder,
    note,
    note_unknown,
    print_json,
    progress_bars,
    quiet_libraries,
    stdout,
)
from iclm.errors import ConfigurationError, ICLMError
from iclm.version import __version__

app = typer.Typer(
    help="Fine-tune a language model into independent causal mechanisms.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_study.app, name="study")
app.add_typer(cli_continual.app, name="continual")
app.command()(cli_plan.plan)
app.add_typer(cli_modules.app, name="modules")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Fine-tune a language model into independent causal mechanisms."""
    if version:
        print(f"iclm {__version__}")
        raise typer.Exit


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Run folder to make.")] = Path("runs/quickstart"),
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides of the shipped recipe.")] = None,
    test_problems: Annotated[int, typer.Option(min=1, help="ACRE problems a column, four queries each.")] = 25,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train an ICLM and plain LoRA on ACRE and compare them out of distribution.

    Example: iclm quickstart --out runs/quickstart
    """
    quiet_libraries()
    from iclm.report.tables import dependence_lines, quickstart_table, routing_lines
    from iclm.studies import quickstart as study

    with progress_bars() as bars:
        summary = study.quickstart(
            out,
            overrides=overrides or (),
            test_problems=test_problems,
            overwrite=overwrite,
            say=note,
            progress=bars,
        )
    if as_json:
        print_json(summary)
        return
    console = stdout()
    console.print(quickstart_table(summary))
    for line in routing_lines(summary["routing"]):
        console.print(line)
    for line in dependence_lines(summary["dependence"], summary["iclm"]["domains"]):
        console.print(line)
    for name in ("iclm", "lora"):
        record = summary[name]
        console.print(f"{name}: {record['examples_seen']} examples in {record['train_seconds']:.0f} s of training")
    console.print(f"{summary['seconds']:.0f} s in all; next: iclm generate {out} --prompt '[3, 7] -> '")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe in YAML.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides, e.g. method=lora.")] = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train as a recipe says.

    Example: iclm train recipes/acre.yaml training.learning_rate=5e-4 --out runs/acre
    """
    quiet_libraries()
    from iclm.evaluation.evaluate_run import evaluate_run
    from iclm.evaluation.runs import divergence, load_run
    from iclm.recipe import load_recipe
    from iclm.report.tables import evaluation_table
    from iclm.training.processes import is_first
    from iclm.training.run import train as train_run

    loaded = load_recipe(recipe, overrides or ())
    _, record = train_run(loaded, out, overwrite=overwrite, resume=resume, say=note)
    if not is_first():
        return
    if record["diverged"]:
        if as_json:
            print_json(record)
        note(f"error: {divergence(out)}")
        sys.exit(1)
    report = None
    if loaded.data.validation:
        note("validation")
        report = evaluate_run(load_run(out), loaded.data.validation, module="all")
    if as_json:
        print_json({**record, "validation": report})
        return
    console = stdout()
    if report is not None:
        console.print(evaluation_table(report))
    console.print(
        f"{record['examples_seen']} examples in {record['train_seconds']:.0f} s, "
        f"{record['trainable_parameters']:,} trainable parameters; run folder {out}"
    )


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[
        list[str] | None,
        typer.Option(help="FILE or FILE=DOMAIN, also several times; default: the recipe's validation sources."),
    ] = None,
    module: Annotated[str, typer.Option(help="mixture, invariant, domain_0 or its name, ... or all.")] = "mixture",
    routing: Annotated[str, typer.Option(help="learned or oracle.")] = "learned",
    generate: Annotated[bool, typer.Option("--generate", help="Greedy decoding instead of choice scoring.")] = False,
    loss: Annotated[
        bool,
        typer.Option(
            "--loss", help="The loss of the answers, in nats a token, instead of accuracy: of free answers, too."
        ),
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of --generate; default: the longest answer.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Rendering of files of problems: symbolic or text.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Strict rendering of ACRE JSON files.")] = False,
    ask: Ask = "letter",
    score: Annotated[str, typer.Option(help="Of a choice: sum or mean of its tokens' log-likelihoods.")] = "sum",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first examples of each file.")] = None,
    independence: Annotated[
        bool, typer.Option("--independence", help="Also every measure of the modules' independence.")
    ] = False,
    columns: Columns = None,
    base: Base = None,
    quantization: Quantization = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a run's modules on files, and its routing.

    Example: iclm evaluate runs/acre --data IID_val_text.jsonl --data IID_val_symbolic.jsonl --module all
    """
    quiet_libraries()
    from iclm.evaluation.evaluate_run import evaluate_run
    from iclm.evaluation.runs import load_run
    from iclm.evaluation.sides import sources_for
    from iclm.report.tables import dependence_lines, evaluation_table, independence_table, loss_table, routing_lines

    loaded = load_run(run, base=base, quantization=quantization)
    objects = "strict" if strict else "official"
    if (generate or loss) and score != "sum":
        raise ConfigurationError(f"--score is for choices; leave it out with --{'generate' if generate else 'loss'}")
    if max_new_tokens is not None and not generate:
        raise ConfigurationError("--max-new-tokens is for --generate, which is not given; leave it out, or give both")
    options = {"format": format, "objects": objects, "columns": columns, "score": score}
    sources = sources_for(data or (), loaded, limit=limit, ask=ask, **options)
    with progress_bars() as bars:
        report = evaluate_run(
            loaded,
            sources,
            module=module,
            routing=routing,
            generate=generate,
            loss=loss,
            max_new_tokens=max_new_tokens,
            independence=independence,
            progress=bars,
        )
    note_unknown(report["unknown_domains"], loaded)
    if as_json:
        print_json(report)
        return
    console = stdout()
    console.print(loss_table(report) if loss else evaluation_table(report))
    for line in routing_lines(report["routing"]) if "routing" in report else ():
        console.print(line)
    if "independence" in report:
        console.print(independence_table(report["independence"], report["independence_domains"]))
    for row in report["data"]:
        for line in dependence_lines(row.get("dependence", {}), loaded.numbered):
            console.print(f"{row['file']}: {line}")


@app.command()
def diagnose(
    run: RunFolder,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="FILE or FILE=DOMAIN of the training distribution; default: the recipe's validation sources."
        ),
    ] = None,
    ood: Annotated[list[str] | None, typer.Option(help="FILE or FILE=DOMAIN out of distribution.")] = None,
    before: Annotated[
        Path | None, typer.Option(help="Earlier run to look for forgetting; default: the run's own first stage.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first examples of each source.")] = None,
    format: Annotated[str | None, typer.Option(help="Rendering of files of problems: symbolic or text.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Strict rendering of ACRE JSON files.")] = False,
    ask: Ask = "letter",
    columns: Columns = None,
    base: Base = None,
    quantization: Quantization = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make; default: diagnosis in the run folder.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Look for the failures: routing, independence, overfitting, forgetting, interventions; with plots.

    Example: iclm diagnose runs/acre --data IID_val_text.jsonl --ood Sys_test_text.jsonl
    """
    quiet_libraries()
    from iclm.evaluation.diagnose import diagnose as measure
    from iclm.evaluation.evaluate_run import evaluation_sources
    from iclm.evaluation.runs import load_run
    from iclm.evaluation.sides import earlier_run, recipe_sources
    from iclm.report.diagnosis import check_folder, diagnosis_tables, with_verdicts, write_diagnosis

    loaded = load_run(run, base=base, quantization=quantization)
    folder = run / "diagnosis" if out is None else out
    check_folder(folder, overwrite=overwrite)
    objects = "strict" if strict else "official"
    options = {"format": format, "objects": objects, "columns": columns}
    sources = evaluation_sources([*(data or ()), *(ood or ())], loaded, ask=ask, **options)
    iid, shifted = sources[: len(data or ())], sources[len(data or ()) :]
    if not iid:
        iid, found = recipe_sources(run)
        shifted = found + shifted
    earlier = earlier_run(loaded, before, base)
    with progress_bars() as bars:
        report = measure(loaded, iid, shifted, before=earlier, limit=limit, progress=bars)
    files = write_diagnosis(report, folder, overwrite=overwrite)
    note_unknown(report["unknown_domains"], loaded)
    if as_json:
        print_json(with_verdicts(report))
    else:
        for table in diagnosis_tables(report):
            stdout().print(table)
    note(f"written to {folder}: {', '.join(path.name for path in files)}")


@app.command()
def report(
    run: RunFolder,
    diagnosis: Annotated[
        Path | None, typer.Option(help="Folder that `iclm diagnose` made of the run; default: the one in it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file to make; default: report.html in the run folder.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """One HTML page of a run: its modules, training curves, recipe, and what iclm diagnose found.

    Example: iclm report runs/acre --out acre.html
    """
    quiet_libraries()
    from iclm.report.run_page import write_run_page

    page = write_run_page(run, diagnosis=diagnosis, out=out, overwrite=overwrite)
    if as_json:
        print_json({"report": str(page)})
    else:
        print(page)


@app.command()
def estimators(
    out: Annotated[Path | None, typer.Option(help="File to write, a JSON line for each figure.")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Samples that each figure is the mean of.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Try the measures and losses of independence where the truth is known.

    Example: iclm estimators --repetitions 3 --out estimators.jsonl
    """
    quiet_libraries()
    from iclm.report.estimators import estimators_table
    from iclm.studies import estimators as study

    with progress_bars() as bars:
        rows = study.run(out, repetitions=repetitions, seed=seed, overwrite=overwrite, progress=bars)
    if as_json:
        print_json(rows)
    else:
        stdout().print(estimators_table(rows))


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="The prompt, or - for standard input.")],
    module: Annotated[str, typer.Option(help="mixture, invariant, domain_0 or its name, ...")] = "mixture",
    domain: Annotated[
        str | None, typer.Option(help="Route to this domain's module instead of the router's choice.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens.")] = 32,
    base: Base = None,
    quantization: Quantization = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt and say which module was used.

    Example: iclm generate runs/acre --prompt 'The capital of France is '
    """
    quiet_libraries()
    from iclm.evaluation.evaluate_run import answer
    from iclm.evaluation.runs import load_run

    loaded = load_run(run, base=base, quantization=quantization)
    # a shell's pipe ends in a line break that nobody means
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes that Python could not decode
        raise ConfigurationError("the prompt is not UTF-8 text") from error
    result = answer(loaded, text, module=module, domain=domain, max_new_tokens=max_new_tokens)
    if as_json:
        print_json(result)
        return
    print(result["answer"])
    note(f"module: {result['used']}")


def main() -> None:
    """Run the command line; the entry point of `iclm`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    code = 0
    try:
        code = app(prog_name="iclm", standalone_mode=False) or 0
    except ICLMError as error:
        note(f"error: {' '.join(str(error).split())}")
        code = 2
    except typer.Abort:
        note("aborted")
        code = 1
    except BrokenPipeError:
        pass
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        code = _usage_error(error)
    sys.exit(code)


def _usage_error(error: Any) -> int:
    """Say in one line what is wrong with a command line; a group without a command shows its help. Returns the exit code.

    Args:
        error: click's exception, which some versions of typer have in a package of their own.
    """
    command = getattr(getattr(error, "ctx", None), "command_path", None) or "iclm"
    text = str(error.format_message())
    if "\n" in text.strip():
        note(text)
    else:
        note(f"error: {' '.join(text.split()).rstrip('.?')}; see {command} --help")
    return int(error.exit_code)


if __name__ == "__main__":
    main()
