"""One HTML page of a run: what was trained, how it went, what each module does, and whether anything failed.

    facts       method, base, parameters, examples, seconds, versions, what was changed since
    diagnosis   the worst verdict of each failure; its tables and plots further down; both where `iclm diagnose` was run
    modules     names, domains, parameters, and the share of the routes on each
    training    loss terms and router figures by step
    recipe      every field, written out

The page is one file: style and plots are in it, nothing is fetched and no script is run, so that it can be mailed or kept.
It is made from the run's files alone, without its base model. Jinja escapes every text that comes from them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.table import Table

from iclm.data.files import atomic_write, check_file
from iclm.errors import CheckpointError
from iclm.evaluation.diagnose import training_section
from iclm.evaluation.runs import FINISHED, read_record
from iclm.model.checkpoint import read_config, read_json
from iclm.report.diagnosis import FAILURES, FILE, SEVERITY, Verdict, diagnosis_tables, verdicts
from iclm.report.plots import DOTS_PER_INCH, drawn
from iclm.report.tables import modules_table, quickstart_table
from iclm.training.folder import PAGE, QUICKSTART, RECIPE
from iclm.training.run_modules import DIAGNOSIS, list_modules
from iclm.version import __version__

TEMPLATE = "run_page.html"
SHOWN = {
    "routing": {
        "routing.png": "Examples by the module that they were routed to and their true domain.",
        "features.png": "What the router sees of each prompt, in two dimensions, with its codes.",
    },
    "overfitting": {"accuracy.png": "Accuracy of every module inside and outside the training distribution."},
    "interventions": {"swap.png": "Accuracy with another module in the place of the router's choice."},
}
"""The plots below the table of each failure, and what they show."""


def write_run_page(
    run: str | Path, *, diagnosis: str | Path | None = None, out: str | Path | None = None, overwrite: bool = False
) -> Path:
    """Write the page of a finished run, whole or not at all.

    Args:
        run: the run folder.
        diagnosis: a folder that `iclm diagnose` made of the run; default: the one in the run folder, if there is one.
        out: the file; default: report.html in the run folder.
        overwrite: replace an existing file.

    Returns:
        The file.

    Raises:
        ICLMError: no finished run, a damaged file, no such diagnosis, or a file that must not be written.
    """
    read_record(Path(run))  # a folder that is no run is not written to
    path = Path(run) / PAGE if out is None else Path(out)
    check_file(path, overwrite=overwrite)
    page = run_page(run, diagnosis=diagnosis)
    with atomic_write(path, overwrite=overwrite) as stream:
        stream.write(page)
    return path


def run_page(run: str | Path, *, diagnosis: str | Path | None = None) -> str:
    """The page of a finished run as HTML; for arguments and errors see `write_run_page`."""
    run = Path(run)
    with _damaged(run / FINISHED):
        facts = list(_facts(read_record(run)))
    config = read_config(run)
    training = training_section(run, config)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(resources.files("iclm.report").joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        name=run.resolve().name,
        folder=str(run),
        facts=facts,
        quickstart=_quickstart(run / QUICKSTART),
        diagnosis=_diagnosis(run, list(config.module_names), diagnosis),
        modules=_cells(modules_table(list_modules(run))),
        curves=_image("training.png", {"training": training}, "Loss terms and router figures by optimizer step."),
        no_curves=training.get("reason"),
        recipe=_text(run / RECIPE),
        version=__version__,
    )


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Say in one line that a JSON file does not hold what belongs in it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = f"there is no {error} in it" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path} is damaged, or of another version: {what}; make it again") from error


def _facts(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What run.json says, in words; what it does not say is left out."""
    counts = {
        name: f"{record[name]:,}" for name in ("trainable_parameters", "examples_seen", "steps") if name in record
    }
    if counts.get("trainable_parameters") and record.get("base_parameters"):
        part = record["trainable_parameters"] / record["base_parameters"]
        counts["trainable_parameters"] += f", {part:.2%} of the base's {record['base_parameters']:,}"
    machine = [record.get("device"), f"{record['threads']} threads" if record.get("threads") else None]
    facts = {
        "method": record.get("method"),
        "base": record.get("base"),
        "domains": ", ".join(record["domains"]),
        "trainable parameters": counts.get("trainable_parameters"),
        "training examples": counts.get("examples_seen"),
        "optimizer steps": counts.get("steps"),
        "training time": f"{record['train_seconds']:,.0f} s" if "train_seconds" in record else None,
        "device": ", ".join(text for text in machine if text),
        "the base's number type": record.get("dtype"),
        "versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
        "changed since": "; ".join(f"{change['change']} {change['name']}" for change in record.get("changes", ())),
    }
    yield from ((name, str(text)) for name, text in facts.items() if text)


def _quickstart(path: Path) -> dict[str, Any] | None:
    """The table of the quickstart, where the run is one of it."""
    if not path.is_file():
        return None
    summary = read_json(path)
    with _damaged(path):
        return _cells(quickstart_table(summary))


def _diagnosis(run: Path, modules: list[str], folder: str | Path | None) -> dict[str, Any] | None:
    """What `iclm diagnose` found: the verdicts that matter, and each failure with its table and plots.

    Raises:
        CheckpointError: the folder that was named holds none, it is damaged, or it is of a run with other modules.
    """
    path = (run / DIAGNOSIS if folder is None else Path(folder)) / FILE
    if not path.is_file():
        if folder is None:
            return None
        raise CheckpointError(f"{folder} holds no {FILE}; give a folder that `iclm diagnose {run} --out FOLDER` made")
    report = read_json(path)
    with _damaged(path):
        if report["modules"] != modules:
            raise CheckpointError(
                f"{path} is of a run with other modules ({', '.join(report['modules'])}); diagnose {run} anew"
            )
        sections = []
        for failure, table in zip(FAILURES, diagnosis_tables(report), strict=True):
            plots = [_image(name, report, text) for name, text in SHOWN.get(failure, {}).items()]
            sections.append({"name": failure, "table": _cells(table), "plots": [plot for plot in plots if plot]})
        return {"verdicts": _worst(verdicts(report)), "sections": sections}


def _worst(judged: list[Verdict]) -> list[Verdict]:
    """The worst verdict of each failure, the first of equals."""
    by_failure = ([verdict for verdict in judged if verdict.failure == failure] for failure in FAILURES)
    return [max(found, key=lambda verdict: SEVERITY.index(verdict.verdict)) for found in by_failure]


def _cells(table: Table) -> dict[str, Any]:
    """A table of the terminal as headings, and rows of cells."""
    heads = [{"text": str(column.header), "right": column.justify == "right"} for column in table.columns]
    rows = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    return {"title": str(table.title), "heads": heads, "rows": rows}


def _image(name: str, report: dict[str, Any], text: str) -> dict[str, str] | None:
    """A plot as a PNG within the page; None where there is nothing to show in it."""
    figure = drawn(name, report)
    if figure is None:
        return None
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return {"data": base64.b64encode(stream.getvalue()).decode("ascii"), "text": text}


def _text(path: Path) -> str | None:
    """A text file; None where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
