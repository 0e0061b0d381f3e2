"""How fast an ICLM of each split learns, beside plain LoRA: validation accuracy by examples and by seconds of training.

Each contestant is one training of the same recipe through the same trainer, with the same examples in the same order.
Several times while it runs, at the same numbers of examples for all, its mixture answers the validation questions. A split is
given as a share of the layers: the layers below it are the trunk, without adapters; 0 adapts them all.

What is timed is the training alone, without evaluation: `seconds` by the clock, and `step_seconds`, the median of a step, which
other work on the machine hardly moves; all contestants have the same batches, so that medians compare. Only validation
questions of the training distribution are asked, so a default may be chosen by the result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from iclm.data.collation import EncodedExample, encode
from iclm.data.files import atomic_write, check_file
from iclm.data.loading import distribution, read_sources, training_data
from iclm.errors import ConfigurationError, DataError
from iclm.evaluation.evaluate import evaluate_choices
from iclm.evaluation.runs import context_length
from iclm.evaluation.scoring import score
from iclm.model import ICLMForCausalLM, load_tokenizer
from iclm.model.backbone import resolve_dtype
from iclm.recipe import Recipe, load_recipe, parse_recipe
from iclm.training.run import build_model, device_name, make_trainer, training_arguments
from iclm.training.stages import stages_of

SPLITS = (0.0, 0.25, 0.5, 0.75)
POINTS = 5  # at which a training is evaluated, the last at its end


@dataclass(frozen=True)
class Contestant:
    """One training.

    Attributes:
        method: "iclm" or "lora".
        split: share of the layers below the split.
        seed: of the recipe.
    """

    method: str
    split: float
    seed: int

    def layer(self, layers: int) -> int:
        """The split of a base of so many layers, rounded down as the default is."""
        return int(self.split * layers + 1e-9)  # 0.29 of 100 is a little less than 29

    def recipe(self, recipe: Recipe, layers: int) -> Recipe:
        """The recipe with this contestant's settings, for a base of so many layers."""
        model = recipe.model.model_copy(update={"split_layer": self.layer(layers)})
        return recipe.model_copy(update={"method": self.method, "seed": self.seed, "model": model})

    def matches(self, row: dict[str, Any]) -> bool:
        """Whether a result is of this contestant."""
        return (row["method"], row["split"], row["seed"]) == (self.method, self.split, self.seed)


def learning_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that ships with the package."""
    with resources.as_file(resources.files("iclm.studies.bench") / "learning.yaml") as path:
        return load_recipe(path, overrides)


class _Timer(TrainerCallback):
    """Keeps how long each step took, and calls `evaluate` after some of them."""

    def __init__(self, steps: set[int], evaluate: Callable[[int, list[float]], None]) -> None:
        self.steps, self.evaluate = steps, evaluate
        self.seconds: list[float] = []
        self._from = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._from = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock, and start it again when an evaluation is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._from)
        if state.global_step in self.steps:
            self.evaluate(state.global_step, self.seconds)
        self._from = time.perf_counter()


def run(
    out: str | Path | None,
    *,
    overrides: Sequence[str] = (),
    splits: Sequence[float] = SPLITS,
    seeds: Sequence[int] = (0,),
    points: int = POINTS,
    overwrite: bool = False,
    progress: Callable[[str, int], Callable[..., None]] | None = None,
) -> list[dict[str, Any]]:
    """Train and evaluate plain LoRA and an ICLM at each split.

    Args:
        out: JSON lines, written as each training ends; started again with the same recipe and points on the same machine, those
            that are there are kept. None writes nothing.
        overrides: of the shipped recipe.
        splits: shares of the layers below the split, in [0, 1).
        points: evaluations of a training.
        overwrite: begin anew where `out` exists.
        progress: makes a progress callback from a title and a total.

    Returns:
        One row a training, point and validation source: `method`, `split`, `split_layer`, `seed`, `examples` and `steps`
        seen, `seconds`, `step_seconds`, `set`, `n`, `correct`, `value`, and what it ran on.

    Raises:
        ICLMError: a recipe, split or file that cannot be used.
    """
    recipe = learning_recipe(overrides)
    if not recipe.data.validation:
        raise ConfigurationError("data.validation is empty; accuracy is measured on it")
    for split in splits:
        if not 0 <= split < 1:
            raise ConfigurationError(f"split {split} is no share of the layers; use 0 up to below 1, such as 0.5")
    if points < 1:
        raise ConfigurationError(f"points is {points}; at least 1 is needed")
    # seed by seed, so that what is cut short has whole comparisons
    contestants = [
        found
        for seed in seeds
        for found in (Contestant("lora", 0.0, seed), *(Contestant("iclm", split, seed) for split in splits))
    ]
    path = None if out is None else Path(out)
    if path is not None:
        check_file(path, overwrite=True)  # results that are there are kept, or replaced
    settings, here = recipe.model_dump(mode="json", exclude={"method", "seed"}), _here(recipe)
    rows = []
    if path is not None and not overwrite:
        rows = _finished(path, settings, lambda rows: _difference(rows, here, contestants, points))
    for contestant in contestants:
        if any(contestant.matches(row) for row in rows):
            continue
        found = _train(contestant, recipe, here, points, progress)
        rows += [{**row, "recipe": settings} for row in found]
        if path is not None:
            with atomic_write(path, overwrite=True) as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows)
    return [row for row in rows if any(contestant.matches(row) for contestant in contestants)]


def _finished(
    path: Path, settings: dict[str, Any], difference: Callable[[list[dict[str, Any]]], str | None]
) -> list[dict[str, Any]]:
    """Results that are there already; they must be of the same recipe, and without `difference`."""
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [parse_recipe(row["recipe"], str(path)) for row in rows]  # what it did not name yet has its default
        same = all(recipe.model_dump(mode="json", exclude={"method", "seed"}) == settings for recipe in kept)
        how = difference(rows) if same else "of another recipe"
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of results; choose another --out") from error
    if how is not None:
        raise ConfigurationError(f"{path} holds results {how}; choose another --out or pass --overwrite")
    return rows


def _here(recipe: Recipe) -> dict[str, Any]:
    """What trainings of a recipe run on: seconds compare on the same only."""
    return {
        "dtype": str(resolve_dtype(recipe.dtype)).removeprefix("torch."),
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _difference(
    rows: list[dict[str, Any]], here: dict[str, Any], contestants: Sequence[Contestant], points: int
) -> str | None:
    """How kept results differ from those that would stand beside them, in words; None where they do not."""
    for name, value in here.items():
        for row in rows:
            if row[name] != value:
                return f"of {name} {row[name]}, and here it is {value}"
    splits = {(contestant.method, contestant.split): contestant for contestant in contestants}
    for row in rows:
        found = splits.get((row["method"], row["split"]))
        if found is not None and found.layer(row["layers"]) != row["split_layer"]:
            return (
                f"of split {row['split']:g} at layer {row['split_layer']} of {row['layers']}, and here that is layer "
                f"{found.layer(row['layers'])}"
            )
    trainings: dict[Any, set[int]] = {}
    for row in rows:
        trainings.setdefault((row["method"], row["split"], row["seed"]), set()).add(row["steps"])
    for found_at in map(sorted, trainings.values()):
        marks = sorted(_marks(found_at[-1], points))
        if found_at != marks:
            steps = [", ".join(map(str, each)) for each in (found_at, marks)]
            return f"after {steps[0]} steps, and {points} points are after {steps[1]}"
    return None


def _marks(steps: int, points: int) -> set[int]:
    """The steps of a training after which it is evaluated."""
    return {round(steps * number / points) for number in range(1, points + 1)} - {0}


def _train(
    contestant: Contestant,
    recipe: Recipe,
    here: dict[str, Any],
    points: int,
    progress: Callable[[str, int], Callable[..., None]] | None,
) -> list[dict[str, Any]]:
    transformers.set_seed(contestant.seed)
    tokenizer = load_tokenizer(recipe.base)
    layers = _layers(recipe)
    recipe = contestant.recipe(recipe, layers)
    model = build_model(recipe)
    longest = recipe.data.max_tokens or context_length(model)
    packs, domains, _ = training_data(
        recipe.data.train, tokenizer, max_tokens=longest, pack=model.packs(recipe.data.pack)
    )
    questions = {
        _name(source): encode(read_sources([source]), tokenizer, domains=domains, max_tokens=context_length(model))
        for source in recipe.data.validation
    }
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch:
        stage = stages_of(recipe.training)[0]
        arguments = training_arguments(recipe, Path(scratch), stage)
        arguments.disable_tqdm = True
        model.to(arguments.device)
        trainer = make_trainer(recipe, model, arguments, packs, tokenizer.pad_token_id, stage)
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        batches = trainer.batches(packs, stage.epochs)
        sizes = []
        for epoch in range(stage.epochs):
            batches.set_epoch(epoch)
            sizes += [sum(len(packs[number].branches) for number in batch) for batch in batches]
        marks = _marks(len(sizes), points)
        title = "lora" if contestant.method == "lora" else f"iclm, split {contestant.split:g}"
        tick = None if progress is None else progress(f"{title}, seed {contestant.seed}", len(sizes))
        record = {
            "method": contestant.method,
            "split": contestant.split,
            "split_layer": model.config.split_layer,
            "layers": layers,
            "seed": contestant.seed,
            "learning_rate": recipe.training.learning_rate,
            **here,
        }

        def evaluate(step: int, seconds: list[float]) -> None:
            seen = {"steps": step, "examples": sum(sizes[:step])}
            spent = {"seconds": round(sum(seconds), 2), "step_seconds": round(median(seconds), 4)}
            for name, examples in questions.items():
                rows.append({**record, **seen, **spent, "set": name, **_accuracy(model, examples, tokenizer)})
            if tick is not None:
                tick(step, len(sizes))

        trainer.add_callback(_Timer(marks, evaluate))
        trainer.fit_router()
        trainer.train()
    return rows


def _accuracy(model: ICLMForCausalLM, examples: list[EncodedExample], tokenizer: Any) -> dict[str, Any]:
    """Accuracy of the mixture; the model goes on in the mode that it was in."""
    mode = model.training
    model.eval()
    found = evaluate_choices(score(model, examples, pad=tokenizer.pad_token_id), examples)[0].overall
    model.train(mode)
    return {"n": found.n, "correct": found.correct, "value": found.value}


def _name(source: Any) -> str:
    """Name of a validation source in the results."""
    made = source.acre or source.raven or distribution(source)
    parts = [made or Path(str(source.file or source.dataset)).stem, source.format]
    return " ".join(part for part in parts if part)


def _layers(recipe: Recipe) -> int:
    """Number of layers of the recipe's base."""
    from transformers import AutoConfig

    from iclm.model.backbone import locate_base

    return int(AutoConfig.from_pretrained(locate_base(recipe.base)).get_text_config(decoder=True).num_hidden_layers)
