"""A plan as a table: what a training has, holds and takes, beside plain LoRA."""

from __future__ import annotations

from typing import Any

from rich.table import Table

GIB = 2**30


def plan_table(found: dict[str, Any]) -> Table:
    """An ICLM and plain LoRA of the same rank, side by side."""
    settings, parameters, base = found["settings"], found["parameters"], found["base"]
    table = Table(
        title=f"{base['name']}: {parameters['base']:,} parameters, {base['layers']} layers, {base['dtype']}; "
        f"{settings['batch']} examples of {settings['tokens']} tokens a step"
    )
    table.add_column("")
    table.add_column(f"ICLM, K = {settings['k']}, split at {settings['split_layer']}", justify="right")
    table.add_column("plain LoRA", justify="right")
    rows = [
        ("trained parameters", f"{parameters['modules']:,}", f"{parameters['lora']:,}"),
        ("  of each module", f"{parameters['module']:,}", "–"),
    ]
    if found["not_planned"] is None:
        rows += _costs(found["iclm"], found["lora"])
    for label, ours, theirs in rows:
        if (ours, theirs) != ("–", "–"):
            table.add_row(label, ours, theirs)
    return table


def _costs(iclm: dict[str, Any], lora: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Memory and time of both, as lines of the table."""
    return [
        ("memory of tensors", _gib(iclm["memory"]["tensors"]), _gib(lora["memory"]["tensors"])),
        ("memory of the process", _gib(iclm["memory"].get("process")), _gib(lora["memory"].get("process"))),
        ("10¹² operations a step", f"{iclm['flops'] / 1e12:.3g}", f"{lora['flops'] / 1e12:.3g}"),
        ("seconds a step, here", _seconds(iclm["seconds"]), _seconds(lora["seconds"])),
        (
            "seconds of the training, here",
            _seconds(iclm.get("training_seconds")),
            _seconds(lora.get("training_seconds")),
        ),
        (
            "seconds a step, at --tflops",
            _seconds(iclm.get("seconds_at_tflops")),
            _seconds(lora.get("seconds_at_tflops")),
        ),
    ]


def plan_lines(found: dict[str, Any]) -> list[str]:
    """The ratios to plain LoRA (or why there are none), what full copies would be, and what was measured, as lines of text."""
    iclm, lora = found["iclm"], found["lora"]
    copies = (
        f"{found['settings']['k'] + 2} copies of the base, as in the paper's own code, would be "
        f"{found['parameters']['copies']:,} parameters"
    )
    if found["not_planned"] is not None:
        return [f"memory and time are not planned: {found['not_planned']}", copies]
    ratios = [f"memory {iclm['memory']['tensors'] / lora['memory']['tensors']:.2f}"]
    if iclm["seconds"] is not None and lora["seconds"]:
        ratios.insert(0, f"step {iclm['seconds'] / lora['seconds']:.2f}")
    lines = [f"ICLM : plain LoRA: {', '.join(ratios)}", copies]
    for name, part in (("ICLM", iclm), ("plain LoRA", lora)):
        measured = part["measured"]
        if measured["batch"] < found["settings"]["batch"]:
            lines.append(
                f"{name}: measured with batches of {measured['batch']}, from which the time is taken in proportion and the memory as a line"
            )
    return lines


def _gib(value: float | None) -> str:
    return "–" if value is None else f"{value / GIB:.2f} GiB"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
