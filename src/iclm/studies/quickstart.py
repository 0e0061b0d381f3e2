"""The quickstart: train an ICLM and plain LoRA on the same ACRE examples, and compare them out of distribution.

OUT/                   the ICLM's run folder, usable by every other command
OUT/lora/              the run folder of plain LoRA
OUT/quickstart.jsonl   one line a method, module, split and format
OUT/quickstart.json    the figures of the table, the routing and the mutual information
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from iclm.data.collation import EncodedExample, encode
from iclm.data.files import atomic_write
from iclm.data.loading import read_source, source_name
from iclm.errors import ConfigurationError
from iclm.evaluation.evaluate import ModuleResult, dependence_of, evaluate_choices, routing_of
from iclm.evaluation.metrics import majority_baseline
from iclm.evaluation.runs import context_length
from iclm.evaluation.scoring import score
from iclm.model import ICLMConfig, ICLMForCausalLM, load_tokenizer
from iclm.recipe import DataSource, Recipe, load_recipe
from iclm.training.folder import QUICKSTART
from iclm.training.run import train

REGIMES = ("IID", "Sys")  # the published rendering keeps the shift of Sys, not that of Comp
FORMATS = ("symbolic", "text")
TEST_SEED = 1_000_003  # no training recipe uses it; the splits are separate streams anyway


@dataclass(frozen=True)
class Column:
    """One column of the table: test problems of a regime in a format."""

    regime: str
    format: str

    @property
    def name(self) -> str:
        """For instance "Sys text"."""
        return f"{self.regime} {self.format}"


COLUMNS = tuple(Column(regime, format) for format in FORMATS for regime in REGIMES)


def quickstart_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that ships with the package."""
    with resources.as_file(resources.files("iclm.studies") / "quickstart.yaml") as path:
        return load_recipe(path, overrides)


def lora_recipe(recipe: Recipe) -> Recipe:
    """Plain LoRA on the same examples, as many passes over them, at the same learning rate."""
    section = recipe.training
    passes = section.epochs + (section.invariant_epochs if section.stages == "two_stage" else 0)
    usual = {name: type(section).model_fields[name].default for name in ("invariant_epochs", "invariant_rate")}
    changes = {**usual, "stages": "joint", "epochs": passes, "start_from": None}
    training = section.model_copy(update=changes)
    return recipe.model_copy(update={"method": "lora", "training": training})


def check_recipe(recipe: Recipe) -> None:
    """Raise `ConfigurationError` unless the recipe trains an ICLM on ACRE IID in both formats, domains of that name."""
    if recipe.method != "iclm":
        raise ConfigurationError(
            f"method is {recipe.method!r}; the quickstart trains an ICLM, and plain LoRA beside it"
        )
    if recipe.model.num_domains < len(FORMATS):
        raise ConfigurationError(
            f"model.num_domains is {recipe.model.num_domains}; the quickstart has {len(FORMATS)} domains"
        )
    others = [source_name(source) for source in recipe.data.train if source.acre != "IID"]
    if others:
        raise ConfigurationError(
            f"data.train holds {others[0]}; the quickstart trains on ACRE IID, and its table calls Sys out of distribution"
        )
    domains = {source.domain or source.format for source in recipe.data.train}
    if domains != set(FORMATS):
        raise ConfigurationError(
            f"data.train has the domains {', '.join(sorted(map(str, domains)))}; the quickstart compares {' and '.join(FORMATS)}"
        )


def test_examples(column: Column, problems: int, objects: str) -> list[Any]:
    """Generated test problems of a column, four queries each."""
    source = DataSource(
        acre=column.regime,  # type: ignore[arg-type]
        split="test",
        problems=problems,
        seed=TEST_SEED,
        format=column.format,  # type: ignore[arg-type]
        objects=objects,  # type: ignore[arg-type]
    )
    return read_source(source)


def quickstart(
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    test_problems: int = 25,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int], Any] | None = None,
) -> dict[str, Any]:
    """Train and compare; see the head of this module.

    Args:
        overrides: of the shipped recipe.
        test_problems: ACRE problems a column, four queries each.
        say: called with a line for every stage.
        progress: makes a progress callback from a title and a total.

    Returns:
        What quickstart.json says.

    Raises:
        ICLMError: a base, recipe or folder that cannot be used.
    """
    out = Path(out)
    started = time.perf_counter()
    recipe = quickstart_recipe(overrides)
    objects = recipe.data.train[0].objects
    check_recipe(recipe)
    rows: list[dict[str, Any]] = []

    say("training the ICLM")
    iclm, record = train(recipe, out, overwrite=overwrite)
    tokenizer = load_tokenizer(recipe.base)
    domains = {name: number for number, name in enumerate(record["domains"])}
    columns = {
        column: encode(
            test_examples(column, test_problems, objects), tokenizer, domains=domains, max_tokens=context_length(iclm)
        )
        for column in COLUMNS
    }

    def measure(model: ICLMForCausalLM, method: str, modules: Sequence[str], states: bool = False) -> list[Any]:
        total = sum(map(len, columns.values()))
        tick = progress(f"evaluating {method}", total) if progress is not None else None
        kept = []
        for column, examples in columns.items():
            scores = score(model, examples, modules=modules, pad=tokenizer.pad_token_id, states=states, progress=tick)
            for result in evaluate_choices(scores, examples):
                rows.append(_row(method, column, result))
            kept.append(scores)
        return kept

    say("evaluating every module of the ICLM")
    scored = measure(iclm, "iclm", (*iclm.config.module_names, "oracle"), states=True)
    figures = _figures(scored, columns, iclm.config.num_domains)
    del iclm

    say("training plain LoRA on the same examples")
    lora, lora_record = train(lora_recipe(recipe), out / "lora")
    measure(lora, "lora", ("mixture",))
    del lora

    say("evaluating the untouched base model")
    base = ICLMForCausalLM.from_base(
        recipe.base, ICLMConfig(method="lora"), dtype=recipe.dtype, quantization=recipe.quantization
    ).eval()
    measure(base, "base", ("mixture",))

    summary: dict[str, Any] = {
        "columns": [column.name for column in COLUMNS],
        "queries_per_column": 4 * test_problems,
        "objects": objects,
        "majority": {
            column.name: majority_baseline(item.example.answer for item in examples).to_dict()
            for column, examples in columns.items()
        },
        "rows": rows,
        **figures,
        "iclm": record,
        "lora": lora_record,
        "seconds": round(time.perf_counter() - started, 1),
    }
    with atomic_write(out / "quickstart.jsonl", overwrite=True) as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    with atomic_write(out / QUICKSTART, overwrite=True) as stream:
        json.dump(summary, stream, indent=2)
        stream.write("\n")
    return summary


def _row(method: str, column: Column, result: ModuleResult) -> dict[str, Any]:
    values = result.to_dict()
    by_kind = {kind: found["value"] for kind, found in values.pop("by_kind", {}).items()}
    return {"method": method, **values, "regime": column.regime, "format": column.format, "by_kind": by_kind}


def _figures(scored: list[Any], columns: dict[Column, list[EncodedExample]], num_domains: int) -> dict[str, Any]:
    examples = [item for found in columns.values() for item in found]
    routes = np.concatenate([scores.routes for scores in scored])
    states = {side: np.concatenate([scores.states[side] for scores in scored]) for side in ("invariant", "domain")}
    return {
        "routing": routing_of(routes, examples, num_domains),
        "dependence": dependence_of(states, examples),
    }
