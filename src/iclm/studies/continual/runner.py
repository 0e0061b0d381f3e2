"""All sequences of an experiment: what is missing is done, what fails is reported and does not stop the rest.

OUT/continual.yaml       the recipe, every field written out
OUT/jobs/NAME-HASH/      one folder a job (`iclm.studies.continual.job`); the hash is of all that it is given
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from iclm.data.files import atomic_write
from iclm.errors import ConfigurationError
from iclm.model.checkpoint import read_json
from iclm.studies.continual.recipe import ContinualRecipe, load_continual, only_read, with_pinned_files
from iclm.studies.study.executors import LocalExecutor
from iclm.studies.study.grid import digest
from iclm.studies.study.job import DONE, SEQUENCES, SPEC, STUDY, kind_of

RECIPE, JOBS = f"{SEQUENCES}.yaml", "jobs"
FORMAT = 1  # of a job's object; another number makes other names
WORKER = "iclm.studies.continual.job"


@dataclass(frozen=True)
class SequenceJob:
    """One job.

    Attributes:
        name: order/method/seed-0; of the untouched base, which has no seed, order/method.
        spec: all that the worker is given.
    """

    name: str
    spec: dict[str, Any]

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.name.replace('/', '-')}-{digest(self.spec)[:8]}"


def sequence_jobs(recipe: ContinualRecipe, sequence: str) -> list[SequenceJob]:
    """All jobs of a recipe, seed by seed, so that every method has its first seed before one has its second.

    Args:
        sequence: what the experiment is called in its rows.
    """
    found: dict[str, SequenceJob] = {}
    for seed in recipe.seeds:
        for order in recipe.orders:
            for method in recipe.methods:
                kind = recipe.methods[method].kind
                name = f"{order}/{method}" + ("" if kind == "base" else f"/seed-{seed}")
                # what a job does not read does not change its name
                part = only_read(recipe, method, order, 0 if kind == "base" else seed)
                spec = {
                    "format": FORMAT,
                    "name": name,
                    "sequence": sequence,
                    "order": order,
                    "method": method,
                    "seed": None if kind == "base" else seed,
                    "recipe": part.model_dump(mode="json"),
                }
                found.setdefault(name, SequenceJob(name, spec))
    return list(found.values())


@dataclass
class Standing:
    """Where an experiment stands, by the jobs' names.

    Attributes:
        jobs: that are wanted, in the order in which they run.
        done: what done.json says.
        failed: one line of what went wrong.
        running, busy: with a process of ours, or of somebody else.
    """

    jobs: list[SequenceJob] = field(default_factory=list)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)

    @property
    def waiting(self) -> list[SequenceJob]:
        """Jobs that are neither done, failed, running nor busy."""
        over = {*self.done, *self.failed, *self.running, *self.busy}
        return [job for job in self.jobs if job.name not in over]


class Experiment:
    """A continual-learning experiment in a folder.

    Args:
        recipe: what is to be run.
        sequence: what it is called.
        out: its folder; made, or gone on with.
        only: patterns of job names; a name that contains one counts too; empty means all.

    Raises:
        ConfigurationError: a folder that holds something else, or a pattern that fits nothing.
    """

    def __init__(self, recipe: ContinualRecipe, sequence: str, out: Path, only: Sequence[str] = ()) -> None:
        self.recipe = recipe = with_pinned_files(recipe)
        self.out = out
        if out.exists() and not out.is_dir():
            raise ConfigurationError(f"{out} is a file; --out names a folder")
        if out.is_dir() and any(out.iterdir()) and not (out / RECIPE).is_file() and not (out / JOBS).is_dir():
            raise ConfigurationError(f"{out} holds something else than such an experiment; choose another --out")
        if kind_of(out) == STUDY:
            raise ConfigurationError(f"{out} holds a study, not sequences; choose another --out")
        every = sequence_jobs(recipe, sequence)
        if (out / RECIPE).is_file():
            before = [job.name for job in sequence_jobs(load_continual(out / RECIPE), sequence)]
            if not {job.name for job in every} & {*before}:
                raise ConfigurationError(f"{out} holds other sequences, such as {before[0]}; choose another --out")
        wanted = [job for job in every if not only or any(p in job.name or fnmatch(job.name, p) for p in only)]
        if not wanted:
            names = ", ".join(job.name for job in every[:4])
            raise ConfigurationError(f"only {', '.join(only)!r} fits no job; names are such as {names}")
        self.standing = Standing(wanted)
        self.refresh()

    def refresh(self) -> None:
        """Look which jobs are done."""
        for job in self.standing.jobs:
            if (self.folder(job) / DONE).is_file():
                self.standing.done[job.name] = read_json(self.folder(job) / DONE)

    def folder(self, job: SequenceJob) -> Path:
        """Folder of a job."""
        return self.out / JOBS / job.folder

    def write_recipe(self) -> None:
        """Leave the recipe in the folder, every field written out: what a report takes its sequences from."""
        with atomic_write(self.out / RECIPE, overwrite=True) as stream:
            yaml.safe_dump(self.recipe.model_dump(mode="json"), stream, sort_keys=False, allow_unicode=True)

    def run(self, at_once: int = 1, report: Callable[[Standing], None] = lambda standing: None) -> Standing:
        """Do what is missing, so many jobs at a time; what failed is tried again when this is called again.

        Args:
            report: called whenever a job begins or ends.
        """
        self.write_recipe()
        standing, executor = self.standing, LocalExecutor(at_once, WORKER)
        going: dict[Future[str | None], SequenceJob] = {}
        with ThreadPoolExecutor(at_once) as pool:
            try:
                while True:
                    for job in standing.waiting[: at_once - len(going)]:
                        standing.running.add(job.name)
                        with atomic_write(self.folder(job) / SPEC, overwrite=True) as stream:
                            json.dump(job.spec, stream, indent=1, sort_keys=True)
                        going[pool.submit(executor.run, self.folder(job))] = job
                    report(standing)
                    if not going:
                        return standing
                    for future in wait(going, return_when=FIRST_COMPLETED).done:
                        self._end(going.pop(future), future.result())
            except BaseException:
                executor.stop()
                raise

    def _end(self, job: SequenceJob, failure: str | None) -> None:
        standing = self.standing
        standing.running.discard(job.name)
        if failure is None:
            standing.done[job.name] = read_json(self.folder(job) / DONE)
        elif failure == "":
            standing.busy.add(job.name)
        else:
            standing.failed[job.name] = failure
