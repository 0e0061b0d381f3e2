"""The `iclm modules RUN` commands: list, rename, remove, import and export the modules of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from iclm.cli_shared import Ask, Base, Columns, Json, RunFolder, note, print_json, quiet_libraries, stdout


class _RunFirst(TyperGroup):
    """A group that takes a run before the command, but shows the help of a command without one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if len(args) == 2 and args[0] in self.commands and args[1] == "--help":
            args = ["RUN", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunFirst,
    help="The modules of a run: iclm modules RUN list, rename, remove, import (from PEFT), export (to PEFT).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[Path | None, typer.Option(help="Run folder to make; else pass --overwrite to change the run itself.")]
InPlace = Annotated[bool, typer.Option("--overwrite", help="Change the run itself, or replace what --out names.")]
Module = Annotated[str, typer.Argument(help="domain_0, domain_1, ... or the name that list shows.")]


@app.callback()
def modules(ctx: typer.Context, run: RunFolder) -> None:
    """The modules of a run: listed, named, removed, imported from and exported to PEFT."""
    ctx.obj = run


@app.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """Show the modules of a run; its base model is not needed.

    Example: iclm modules runs/acre list
    """
    quiet_libraries()
    from iclm.report.tables import modules_table
    from iclm.training.run_modules import list_modules

    rows = list_modules(ctx.obj)
    if as_json:
        print_json({"run": str(ctx.obj), "modules": rows})
    else:
        stdout().print(modules_table(rows))


@app.command()
def rename(
    ctx: typer.Context,
    module: Module,
    name: Annotated[str, typer.Argument(help="Its new name.")],
    out: Out = None,
    overwrite: InPlace = False,
    as_json: Json = False,
) -> None:
    """Call a domain module by another name.

    Example: iclm modules runs/acre rename domain_0 symbols --overwrite
    """
    quiet_libraries()
    from iclm.training import run_modules

    _say(run_modules.rename(ctx.obj, module, name, out=out, overwrite=overwrite), as_json)


@app.command()
def remove(
    ctx: typer.Context,
    module: Module,
    with_code: Annotated[bool, typer.Option("--with-code", help="Remove the router's code for it too.")] = False,
    base: Base = None,
    out: Out = None,
    overwrite: InPlace = False,
    as_json: Json = False,
) -> None:
    """Remove a domain module; those after it move down by one, and are not changed.

    The training log, whose figures by module have the old numbers, is kept as log_before_removal.jsonl; a diagnosis is not kept.

    Example: iclm modules runs/acre remove domain_1 --with-code --out runs/smaller
    """
    quiet_libraries()
    from iclm.training import run_modules

    found = run_modules.remove(ctx.obj, module, with_code=with_code, base=base, out=out, overwrite=overwrite)
    _say(found, as_json)


@app.command("import")
def import_(
    ctx: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter that PEFT saved.")],
    name: Annotated[str, typer.Option(help="Name of the new module and of its domain.")],
    data: Annotated[
        list[str] | None, typer.Option(help="FILE of prompts of its domain, where its code is placed; several times.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts of each file.")] = None,
    format: Annotated[str | None, typer.Option(help="Rendering of files of problems: symbolic or text.")] = None,
    ask: Ask = "letter",
    columns: Columns = None,
    base: Base = None,
    out: Out = None,
    overwrite: InPlace = False,
    as_json: Json = False,
) -> None:
    """Make a LoRA adapter of PEFT a new domain module; the others are not changed.

    Example: iclm modules runs/acre import adapters/medicine --name medicine --data medicine.jsonl --out runs/wider
    """
    quiet_libraries()
    from iclm.evaluation.evaluate_run import evaluation_sources
    from iclm.training import run_modules

    def sources(run: Any) -> list[Any]:
        return evaluation_sources(data or (), run, ask=ask, format=format, limit=limit, columns=columns)

    found = run_modules.import_adapter(
        ctx.obj,
        adapter,
        name,
        sources=sources if data or ask != "letter" else None,
        base=base,
        out=out,
        overwrite=overwrite,
    )
    _say(found, as_json)
    if "routed" in found:
        note(f"{found['routed']:.0%} of the {found['prompts']} prompts that placed its code are routed to it")
    if found["adapter_base"]:
        note(f"the adapter says that it was trained on {found['adapter_base']}")


@app.command()
def export(
    ctx: typer.Context,
    module: Annotated[str, typer.Argument(help="invariant, domain_0, ... or the name that list shows.")],
    out: Annotated[Path, typer.Option(help="Adapter folder to make.")],
    base: Base = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter folder.")] = False,
    as_json: Json = False,
) -> None:
    """Write a module as a LoRA adapter folder, which PEFT loads onto the base model.

    Example: iclm modules runs/acre export domain_0 --out adapters/symbolic
    """
    quiet_libraries()
    from iclm.training import run_modules

    _say(run_modules.export_adapter(ctx.obj, module, out, base=base, overwrite=overwrite), as_json)


def _say(found: dict[str, Any], as_json: bool) -> None:
    """What was done: a JSON object, or one line."""
    if as_json:
        print_json(found)
        return
    label = found["module"] if found["module"] == found["name"] else f"{found['module']} ({found['name']})"
    was = f", before {found['before']}" if "before" in found else ""
    print(f"{found['change']}: {label}{was}; written to {found['out']}")
