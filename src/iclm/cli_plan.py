"""The `iclm plan` command: what a training would take, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from iclm.cli_shared import Json, note, print_json, progress_bars, quiet_libraries, stdout


def plan(
    base: Annotated[
        str, typer.Option(help="A published configuration (Llama-3.1-8B, Qwen3-0.6B, ...), a folder or a config.json.")
    ],
    k: Annotated[int, typer.Option(help="Domain modules.")] = 2,
    batch: Annotated[int, typer.Option(help="Examples in a batch.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens of an example.")] = 512,
    rank: Annotated[int, typer.Option(help="Rank of each module.")] = 8,
    targets: Annotated[str, typer.Option(help="Adapted linear layers: attention or all-linear.")] = "attention",
    split: Annotated[
        int | None, typer.Option(help="Layers below it carry no adapter; default: a quarter of them.")
    ] = None,
    active: Annotated[int, typer.Option(help="Domain modules that an example activates.")] = 1,
    dtype: Annotated[str, typer.Option(help="Of the frozen base: auto, float32, bfloat16 or float16.")] = "auto",
    checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Adapted layers are computed anew in the backward pass.")
    ] = False,
    examples: Annotated[int | None, typer.Option(min=1, help="Training examples, for the time of it all.")] = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Sustained 10^12 operations a second of a device, for a step there.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Timed steps of each measured model; 0: no time.")] = 5,
    as_json: Json = False,
) -> None:
    """Predict parameters, memory and time of a training, with plain LoRA beside it.

    Example: iclm plan --base Llama-3.1-8B --k 8 --batch 16 --tokens 512
    """
    quiet_libraries()
    from iclm.report.plan import plan_lines, plan_table
    from iclm.studies.plan.plan import plan as predict

    told = False
    with progress_bars() as bars:

        def tick(title: str, total: int) -> Callable[..., None]:
            nonlocal told
            if not told:  # not before the settings are found right
                note(
                    "real training steps of one and three layers are measured; that takes minutes where layers are large"
                )
                told = True
            return bars(title, total)

        found = predict(
            base,
            k=k,
            batch=batch,
            tokens=tokens,
            rank=rank,
            targets=targets,
            split_layer=split,
            active=active,
            dtype=dtype,
            checkpointing=checkpointing,
            examples=examples,
            tflops=tflops,
            rounds=rounds,
            tick=tick,
        )
    if as_json:
        print_json(found)
        return
    stdout().print(plan_table(found))
    for line in plan_lines(found):
        print(line)
