"""The jobs of a study: what each one is given, its name, and which can run.

A job is a training with its evaluation, and is given all of it in one JSON object, from which its id is made: the same
object is the same job wherever it runs. Two kinds:

    try      trains with drawn hyper-parameters; is given the validation sources, never a test source
    report   trains with the chosen hyper-parameters; is given the test sources

`choose` sees rows of tries alone, and refuses any other.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import qmc

from iclm.errors import ConfigurationError
from iclm.recipe import DataSource, Recipe, parse_recipe
from iclm.studies.study.recipe import UNTRAINED, Method, Range, StudyRecipe, XLora, check_xlora, merged

FORMAT = 1  # of a job's object; another number makes other ids
# settings that jobs of this format did not have at first, with the value that they meant
ADDED = {"ask": "letter", "chat": False, "score": "sum", "sha256": None, "ewc": None, "replay": None}


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        method, data: names in the study's recipe.
        seed: of data order, initialisation and generated training problems; None where the method depends on none.
        trial: number of the try, None for a report.
        chosen: the hyper-parameters drawn or chosen, by name.
        spec: all that the worker needs; None while the tries that it waits for are not done.
        needs: names of the tries that choose its hyper-parameters.
    """

    method: str
    data: str
    seed: int | None
    trial: int | None
    chosen: tuple[tuple[str, Any], ...] = ()
    spec: dict[str, Any] | None = None
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name, the same on every machine: acre/lora/seed-0, acre/lora/try-2, or acre/base where there is no seed."""
        if self.trial is not None:
            return f"{self.data}/{self.method}/try-{self.trial}"
        return f"{self.data}/{self.method}" + ("" if self.seed is None else f"/seed-{self.seed}")

    @property
    def id(self) -> str:
        """Hash of what the worker is given; raises ValueError while the job waits."""
        if self.spec is None:
            raise ValueError(f"{self.name} waits for its tries")
        return id_of(self.spec)

    def in_shard(self, shard: int, shards: int) -> bool:
        """Whether it belongs to shard `shard` of `shards`, counted from 1; by its name, so that it never moves."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % shards == shard - 1


def digest(spec: dict[str, Any]) -> str:
    """Hash of what a worker is given, wherever it lies (`comparable`)."""
    return hashlib.sha256(json.dumps(comparable(spec), sort_keys=True).encode()).hexdigest()


def id_of(spec: dict[str, Any]) -> str:
    """Id of the job that is given this."""
    return digest(spec)[:16]


def comparable(value: Any) -> Any:
    """A job's object, or a part of one, as it is compared.

    A setting that was added since is left out where it says what was meant before, and so is the folder of a file whose SHA-256 is
    noted.
    """
    if isinstance(value, dict):
        found = {name: comparable(item) for name, item in value.items() if name not in ADDED or item != ADDED[name]}
        if found.get("sha256") is not None and isinstance(found.get("file"), str):
            found["file"] = re.split(r"[\\/]", found["file"])[-1]
        return found
    return [comparable(item) for item in value] if isinstance(value, list) else value


def jobs_of(study: StudyRecipe, results: Mapping[str, list[dict[str, Any]]]) -> list[Job]:
    """All jobs in the order in which they are to run; tries come before the first report that needs them.

    Args:
        results: the rows of each finished job by its id; only those of tries are looked at.

    Raises:
        ConfigurationError: settings that make no valid training recipe; the message names method and data.
    """
    found: dict[str, Job] = {}
    for block in study.grid:
        for data in block.data or study.data:
            if not block.seeds:
                for method in block.methods:
                    for job in list(_tries(study, method, data))[: block.tries]:
                        found.setdefault(job.name, job)
            for seed in block.seeds:
                for method in block.methods:
                    tries = list(_tries(study, method, data))
                    for job in (*tries, _report(study, method, data, seed, tries, results)):
                        found.setdefault(job.name, job)
    return list(found.values())


def _tries(study: StudyRecipe, method: str, data: str) -> Iterator[Job]:
    if study.search is None or study.methods[method].kind in UNTRAINED or not study.data[data].search:
        return
    tuned, data = study.methods[method].tuned_as or method, study.data[data].tuned_as or data
    drawn_values = draws(study.search.space, study.search.seed, study.search.tries - 1)
    for number, drawn in enumerate([{}, *drawn_values]):  # the first try has the recipe's own values
        yield _job(study, tuned, data, study.search.seed, number, drawn)


def _report(
    study: StudyRecipe, method: str, data: str, seed: int, tries: list[Job], results: Mapping[str, list[dict[str, Any]]]
) -> Job:
    if not tries:
        seedless = study.methods[method].kind == "base" and not study.methods[method].shots
        return _job(study, method, data, None if seedless else seed, None, {})
    needs = tuple(job.name for job in tries)
    if any(job.id not in results for job in tries):
        _job(study, method, data, seed, None, {})  # a setting that there is not is told before anything is trained
        return Job(method, data, seed, None, needs=needs)
    best = tries[choose({job.trial: results[job.id] for job in tries if job.trial is not None})]
    assert best.spec is not None and study.search is not None
    # what the best try was trained with: what was drawn, or the recipe's own values
    chosen = {name: value_of(best.spec["recipe"], name) for name in study.search.space}
    return replace(_job(study, method, data, seed, None, chosen), needs=needs)


def draws(space: Mapping[str, Range], seed: int, count: int) -> list[dict[str, Any]]:
    """Values of each hyper-parameter for so many tries, the same for all methods at the same seed.

    Points of a scrambled Sobol sequence, which spread better than independent draws; more tries leave the first ones
    as they are.
    """
    names = sorted(space)
    with warnings.catch_warnings():  # it warns of counts that are no power of two
        warnings.filterwarnings("ignore", message="The balance properties of Sobol")
        points = qmc.Sobol(len(names), scramble=True, seed=np.random.default_rng(seed)).random(count)
    return [{name: _value(space[name], float(at)) for name, at in zip(names, point, strict=True)} for point in points]


def value_of(recipe: Mapping[str, Any], name: str) -> Any:
    """The value of a hyper-parameter, named as in a training recipe."""
    value: Any = recipe
    for part in name.split("."):
        value = value[part]
    return value


def _value(bounds: Range, at: float) -> Any:
    """The value at a share in [0, 1) of a range; floats to three significant digits."""
    if bounds.values is not None:
        return bounds.values[int(at * len(bounds.values))]
    assert bounds.low is not None and bounds.high is not None
    if bounds.log:
        value = math.exp(math.log(bounds.low) + at * math.log(bounds.high / bounds.low))
    else:
        value = bounds.low + at * (bounds.high - bounds.low)
    return float(f"{value:.3g}")


def choose(tries: Mapping[int, Iterable[dict[str, Any]]]) -> int:
    """The try with the highest validation accuracy of its mixture over all validation questions; the first of equals.

    Raises:
        ConfigurationError: a row that is none of a try on validation questions, or a try without rows.
    """
    values: dict[int, float] = {}
    for number, rows in sorted(tries.items()):
        mixture = []
        for row in rows:
            if row.get("trial") != number or row.get("split") != "val" or row.get("shifted"):
                raise ConfigurationError(
                    f"job {row.get('job')}: a row of split {row.get('split')!r} cannot choose hyper-parameters; only "
                    "validation rows of tries can"
                )
            mixture += [row] if row["module"] == "mixture" else []
        asked = sum(row["n"] for row in mixture)
        if not asked:
            raise ConfigurationError(
                f"try {number} has no row of its mixture on validation questions, so nothing can be chosen"
            )
        values[number] = sum(row["correct"] for row in mixture) / asked
    return max(values, key=lambda number: values[number])


def _job(
    study: StudyRecipe, method: str, data: str, seed: int | None, trial: int | None, chosen: dict[str, Any]
) -> Job:
    spec = {
        "format": FORMAT,
        "method": method,
        "data": data,
        "seed": seed,
        "trial": trial,
        "kind": study.methods[method].kind,
        "shots": study.methods[method].shots,
        "recipe": _recipe(study, study.methods[method], method, data, seed or 0, chosen).model_dump(mode="json"),
        "evaluate": [source.model_dump(mode="json") for source in _evaluated(study, data, trial)],
        "split": "test" if trial is None else "val",
    }
    if study.methods[method].strategy is not None:
        spec["strategy"] = study.methods[method].strategy
    if spec["kind"] == "xlora":  # what other jobs lack, so that their ids stay
        spec["xlora"] = (study.methods[method].xlora or XLora()).model_dump(mode="json")
    return Job(method, data, seed, trial, tuple(sorted(chosen.items())), spec)


def _evaluated(study: StudyRecipe, data: str, trial: int | None) -> list[DataSource]:
    """What a job is evaluated on: a try never gets to know that there are test sources."""
    return study.data[data].test if trial is None else study.data[data].validation


def _recipe(study: StudyRecipe, method: Method, name: str, data: str, seed: int, chosen: dict[str, Any]) -> Recipe:
    """The training recipe of a job; without validation sources, as nothing is chosen while it trains."""
    part = study.data[data]
    drawn: dict[str, Any] = {}
    for key, value in chosen.items():
        place = drawn
        *sections, field = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    seeded = [source.model_copy(update={"seed": seed}) if source.generated else source for source in part.train]
    values = {
        "method": "lora" if method.kind == "xlora" else method.method,  # X-LoRA reads LoRA's settings and num_domains
        "base": study.base,
        "dtype": study.dtype,
        "seed": seed,
        "data": {"train": [source.model_dump(mode="json") for source in seeded]},
        "model": merged(study.model, part.model, method.model, drawn.pop("model", {})),
        "training": merged(study.training, part.training, method.training, drawn.pop("training", {})),
        **drawn,
    }
    where = f"method {name} on {data}"
    recipe = parse_recipe(values, where)
    if method.kind == "xlora":
        check_xlora(recipe, method.xlora or XLora(), where)
    return recipe
