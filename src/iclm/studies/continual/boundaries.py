"""How well the router's error tells a new task from a known one, by threshold; no module is trained for it.

Features are those of the frozen base, so the decisions of a sequence can be made without its trainings, for many thresholds.

    curve     for each task the share of its prompts that is called new before it was learned (1 is right) and, of
              prompts that neither placed nor calibrated its code, after it (0 is right)
    stream    all tasks one after another, boundaries unknown: how many modules are opened, beside how many tasks there are, and how
              well modules follow tasks (adjusted Rand index, Hubert & Arabie 1985)

Only training prompts are used, so that a threshold that is chosen by this was not chosen by a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from sklearn.metrics import adjusted_rand_score

from iclm.data.collation import EncodedExample
from iclm.errors import ConfigurationError
from iclm.model import load_tokenizer
from iclm.model.router import LearnedRouter
from iclm.studies.continual.novelty import Calibration, chunks, held_out, segment, whole_task
from iclm.studies.continual.recipe import ContinualRecipe, Novelty, training_recipe
from iclm.studies.continual.units import Reader, groups_of
from iclm.training.run import build_model

MARGINS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
FRESH = 0.25  # share of a task's problems that are kept to ask whether they are new


def boundary_rows(
    recipe: ContinualRecipe,
    sequence: str,
    margins: Sequence[float] = MARGINS,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, Any]]:
    """A line for each seed, order, margin and task (`kind` "curve"), and for each seed, order and margin ("stream").

    Args:
        sequence: what the experiment is called in its rows.
        margins: values for `novelty.margin`; all else of `novelty` is as in the recipe.
        note: told what is being read.

    Raises:
        ICLMError: data that cannot be used, or a recipe none of whose methods has a router with codes.
    """
    method = next(
        (
            name
            for name, found in recipe.methods.items()
            if found.kind == "sequence"
            and found.method == "iclm"
            and training_recipe(recipe, name, next(iter(recipe.orders)), recipe.seeds[0]).model.router != "oracle"
        ),
        None,
    )
    if method is None:
        raise ConfigurationError(
            "no method of the recipe has a router with codes; boundaries need one, such as iclm: {}"
        )
    for seed in recipe.seeds:
        known: dict[str, tuple[list[EncodedExample], torch.Tensor]] = {}
        for order, tasks in recipe.orders.items():
            training = training_recipe(recipe, method, order, seed)
            transformers.set_seed(seed)
            model = build_model(training)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            tokenizer, data = load_tokenizer(training.base), training.data
            reader = Reader(recipe, tasks, seed, tokenizer, model, data.max_tokens, data.pack)
            for task in tasks:
                if task not in known:
                    note(f"seed {seed}: reading {task}")
                    examples = reader.train_examples(task)
                    known[task] = examples, reader.features(examples)
            head = {"sequence": sequence, "order": order, "seed": seed}
            parts = [known[task] for task in tasks]
            assert isinstance(model.router, LearnedRouter)
            for margin in margins:
                novelty = recipe.novelty.model_copy(update={"margin": margin})
                for row in (*_curve(model.router, parts, tasks, novelty), _stream(model.router, parts, tasks, novelty)):
                    yield {**head, "margin": margin, **row}


def _started(router: LearnedRouter, features: torch.Tensor, groups: Sequence[Any], novelty: Novelty) -> None:
    """Standardise as at the start of a sequence, by the prompts that place the first code."""
    placing = ~held_out(groups, novelty.held_out)
    router.fit((features[placing] if bool(placing.any()) else features).to(router.mean.device))


def _points(router: LearnedRouter, features: torch.Tensor) -> torch.Tensor:
    return router.project(features.to(router.mean.device)).cpu()


def _curve(
    router: LearnedRouter,
    parts: Sequence[tuple[list[EncodedExample], torch.Tensor]],
    tasks: Sequence[str],
    novelty: Novelty,
) -> Iterator[dict[str, Any]]:
    """Tasks with known boundaries, each of which opens its module."""
    calibration, always = Calibration(), novelty.model_copy(update={"share": 1e-9})
    for position, (task, (examples, features)) in enumerate(zip(tasks, parts, strict=True), 1):
        groups = groups_of(examples)
        fresh = held_out(groups, FRESH)
        seen = [group for group, kept in zip(groups, fresh.tolist(), strict=True) if not kept]
        if position == 1:
            _started(router, features[~fresh], seen, novelty)
        points = _points(router, features)
        unseen = float(calibration.is_new(points, novelty).float().mean())
        calibration_before = len(calibration.codes)
        whole_task(calibration, points[~fresh], seen, always)
        if len(calibration.codes) == calibration_before:  # not one prompt was new
            calibration.open(points[~fresh], seen, novelty)
        after = float(calibration.is_new(points[fresh], novelty).float().mean()) if bool(fresh.any()) else None
        found = {"kind": "curve", "position": position, "task": task, "n": len(examples), "fresh": int(fresh.sum())}
        yield {**found, "new_before": unseen if position > 1 else None, "new_after": after}


def _stream(
    router: LearnedRouter,
    parts: Sequence[tuple[list[EncodedExample], torch.Tensor]],
    tasks: Sequence[str],
    novelty: Novelty,
) -> dict[str, Any]:
    """Tasks one after another, boundaries unknown."""
    names = [task for task, (examples, _) in zip(tasks, parts, strict=True) for _ in examples]
    groups = groups_of([item for examples, _ in parts for item in examples], names)
    features = torch.cat([found for _, found in parts])
    first = next(chunks(groups, novelty.chunk))
    _started(router, features[first], [groups[number] for number in first], novelty)
    calibration = Calibration()
    units, _ = segment(calibration, _points(router, features), groups, novelty)
    module = {number: m for unit in units for number, m in zip(unit.examples, unit.modules, strict=True)}
    return {
        "kind": "stream",
        "tasks": len(tasks),
        "opened": len(calibration.codes),
        "units": len(units),
        "rand": float(adjusted_rand_score(names, [module[number] for number in range(len(names))])),
        "n": len(names),
    }
