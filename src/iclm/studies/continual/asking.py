"""What every module knows of every task, asked after each of them: one row of the accuracy matrix R for each module.

mixture      as the router sends each prompt
oracle       the mixture with the module that the task was trained with; of tasks that have one
invariant    alone
domain_i     alone; asked once, when it was opened: what comes later leaves it bitwise the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from iclm.data.collation import EncodedExample
from iclm.evaluation.sides import answer_with
from iclm.model import ICLMForCausalLM
from iclm.model.configuration_iclm import default_name

Counts = dict[tuple[str, str], int]
"""Number of right answers by module and task."""


def ask(
    model: ICLMForCausalLM,
    tests: Mapping[str, Sequence[EncodedExample]],
    homes: Mapping[str, int],
    pad: int,
    opened: Sequence[int] = (),
) -> Counts:
    """Ask the modules of a model the test questions of all tasks.

    Args:
        model: any; it is left in the mode it is in.
        tests: questions with choices by task.
        homes: number of the domain module that each task was trained with; a task that is not there has none yet.
        pad: id of the pad token.
        opened: numbers of the domain modules that were not asked yet.

    Returns:
        Right answers; with an oracle router a task without a module has none of the mixture.

    Raises:
        ConfigurationError: scores are no numbers, as the training has diverged.
    """
    was_training = model.training
    model.eval()
    found: Counts = {}
    try:
        for task, questions in tests.items():
            home = homes.get(task, -1)
            examples = [replace(item, domain=home) for item in questions]
            for module, right in _answered(model, examples, home, pad, opened).items():
                found[module, task] = right
    finally:
        model.train(was_training)
    return found


def _answered(
    model: ICLMForCausalLM, examples: Sequence[EncodedExample], home: int, pad: int, opened: Sequence[int]
) -> dict[str, int]:
    """Right answers of each module to the questions of one task."""
    config = model.config

    def right(modules: tuple[str, ...]) -> tuple[dict[str, int], np.ndarray]:
        scores, found = answer_with(model, examples, modules, pad, None)
        return {m: int(answers.sum()) for m, answers in found.items()}, scores.routes

    if config.num_domains == 0:
        return right(("mixture",))[0]
    found: dict[str, int] = {}
    alone = ("invariant",) if "invariant" in config.module_names else ()
    if config.router == "oracle":
        if home >= 0:
            found, _ = right(("mixture", *alone))
            found["oracle"] = found["mixture"]
        elif alone:
            found, _ = right(alone)
    else:
        found, routes = right(("mixture", *alone))
        if home >= 0:
            same = bool((routes == home).all())
            found["oracle"] = found["mixture"] if same else right((f"route_{home}",))[0][f"route_{home}"]
    for number in opened:
        name = default_name(number)
        found[name] = right((name,))[0][name]
    return found
