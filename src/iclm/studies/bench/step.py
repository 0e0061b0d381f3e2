"""Seconds of a training step: an ICLM of half and of all layers and each K beside plain LoRA, PEFT's LoRA and X-LoRA."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from iclm.errors import ConfigurationError
from iclm.studies.bench import contestants as of
from iclm.studies.bench.contestants import RIVALS, Contestant, Workload
from iclm.studies.bench.timing import Comparison, compare, take_turns

HALF, FULL = 0.5, 0.0


def check(k: Sequence[int], against: Sequence[str], rivals: Sequence[str] = RIVALS) -> tuple[list[int], list[str]]:
    """Numbers of modules in ascending order and names of rivals, each once; raises `ConfigurationError`.

    Args:
        rivals: that can be named.
    """
    if not k or min(k) < 1:
        raise ConfigurationError(f"k is {','.join(map(str, k)) or 'empty'}; name numbers of modules, such as 2,6,16")
    for name in against:
        if name not in rivals:
            raise ConfigurationError(
                f"against names {name!r}, beside which this is not measured; use {', '.join(rivals)}"
            )
        if name != "lora" and importlib.util.find_spec("peft") is None:
            raise ConfigurationError(f"{name} needs PEFT, which is not installed; run: pip install peft")
    return sorted(set(k)), list(dict.fromkeys(["lora", *against]))


def run(
    workload: Workload,
    k: Sequence[int] = (2, 6, 16),
    against: Sequence[str] = ("lora", "peft-lora"),
    *,
    rounds: int = 7,
    compiled: bool = False,
    note: Callable[[str], None] = lambda text: None,
    tick: Callable[[str, int], Callable[[int], None]] | None = None,
) -> list[Comparison]:
    """Time training steps in turns.

    Args:
        k: numbers of domain modules.
        against: rivals; our plain LoRA is always there.
        rounds: that count.
        compiled: compile our models' layers; PEFT's run as they are.
        note: called with a line about a rival that does not run, which is then left out.
        tick: makes a progress callback from a title and a total.

    Returns:
        `step_half` and `step_full` for each K against our plain LoRA, `step_half_vs_peft` and `step_half_vs_xlora`,
        `step_k16` where K = 2 and 16 are both asked for, `step_lora_vs_peft`; with `compiled` also `compile_half` and
        `compile_lora` against the same model uncompiled.
    """
    numbers, rivals = check(k, against)
    field: dict[str, Contestant] = {"lora": of.lora(workload, compiled)}
    for count in numbers:
        field[f"half {count}"] = of.iclm(workload, HALF, count, compiled)
        field[f"full {count}"] = of.iclm(workload, FULL, count, compiled)
    if compiled:
        field["lora uncompiled"] = of.lora(workload)
        field["half uncompiled"] = of.iclm(workload, HALF, numbers[0])
    if "peft-lora" in rivals:
        field["peft-lora"] = of.peft_lora(workload)
    if "xlora" in rivals:
        try:
            rival = of.xlora(workload, numbers[0])
            rival.step()
            field["xlora"] = rival
        except Exception as error:  # whatever PEFT raises on this version of transformers
            note(f"X-LoRA is left out, it does not run here: {type(error).__name__}: {str(error).splitlines()[0]}")
    progress = None if tick is None else tick("training steps", (rounds + 2) * len(field))
    seconds = take_turns({name: one.step for name, one in field.items()}, rounds, warmup=2, tick=progress)
    plain = seconds["lora"]
    found = []
    for count in numbers:
        found.append(compare("step_half", count, seconds[f"half {count}"], plain, "s"))
        found.append(compare("step_full", count, seconds[f"full {count}"], plain, "s"))
        if "peft-lora" in seconds:
            found.append(compare("step_half_vs_peft", count, seconds[f"half {count}"], seconds["peft-lora"], "s"))
    if "xlora" in seconds:
        found.append(compare("step_half_vs_xlora", numbers[0], seconds[f"half {numbers[0]}"], seconds["xlora"], "s"))
    if {2, 16} <= set(numbers):
        found.append(compare("step_k16", 16, seconds["half 16"], seconds["half 2"], "s"))
    if compiled:
        half = seconds[f"half {numbers[0]}"]
        found.append(compare("compile_half", numbers[0], half, seconds["half uncompiled"], "s"))
        found.append(compare("compile_lora", 1, plain, seconds["lora uncompiled"], "s"))
    if "peft-lora" in seconds:
        found.append(compare("step_lora_vs_peft", 1, plain, seconds["peft-lora"], "s"))
    return found
