"""The recipe of a continual-learning experiment: tasks, the orders they come in, and the methods that learn them.

    base: smollm2-135m
    training: {batch_size: 16}                      # of every method and task
    tasks:
      acre-symbolic:
        train: [{acre: IID, problems: 250, format: symbolic}]
        test: [{acre: IID, split: test, problems: 60, format: symbolic}]
      acre-text: ...
    orders:
      short: [acre-symbolic, acre-text]
    methods:
      base: {kind: base}
      lora: {method: lora}
      lora-ewc: {method: lora, guard: ewc}
      iclm: {}
      joint: {kind: joint}
    seeds: [0, 1, 2]

Every method sees the examples of a task once, in the same order, and then never again (but for what a guard keeps);
`joint` sees those of all tasks mixed, which is the upper bound, and `base` sees none, which is the lower.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from iclm.data.loading import refuse_trained, with_pinned
from iclm.errors import ConfigurationError
from iclm.recipe import (
    DataSource,
    ModelSection,
    Recipe,
    Section,
    checked_again,
    one_way_to_ask,
    parse_recipe,
    validated,
)
from iclm.yaml_file import merge, read_mapping, resolve

GUARDS = ("none", "ewc", "replay", "frozen_after_first")
WITH_CODES = ("vq", "kmeans")  # routers that can take a code for a new module as they run
MODEL = {"router_reduction": "none"}  # directions that the first task does not use are where others differ


class Task(Section):
    """What is learned together, and what it is tested on."""

    train: list[DataSource] = Field(min_length=1)
    """Training sources; a sequence's seed takes the place of theirs where problems are generated."""
    test: list[DataSource] = Field(min_length=1)
    """What is asked after every task."""


class Ewc(Section):
    """Elastic weight consolidation."""

    weight: float = Field(default=100.0, gt=0)
    """Of the penalty."""
    problems: int = Field(default=64, ge=1)
    """Problems of each task that the Fisher information is estimated from, at most."""


class Replay(Section):
    """A buffer of problems of earlier tasks."""

    problems: int = Field(default=64, ge=1)
    """Its size; each of them is learned again once beside each later task."""


class Novelty(Section):
    """When a new domain module is opened (`iclm.studies.continual.novelty`)."""

    margin: float = Field(default=1.5, gt=0)
    """A prompt is new to a module if its quantisation error is above this many times `quantile` of the errors of the module's own."""
    quantile: float = Field(default=0.95, gt=0, le=1)
    """Of the errors of prompts that the module's code was not placed by."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """A module is opened where more than this share of a task's, or of a chunk's, prompts is new."""
    held_out: float = Field(default=0.25, gt=0, lt=1)
    """Share of a module's prompts that place no code, but calibrate."""
    chunk: int = Field(default=64, ge=4)
    """Prompts of a stream that are looked at together, about, where task boundaries are unknown; a problem is never cut."""


class ContinualMethod(Section):
    """One method: what it changes of the shared recipe."""

    kind: Literal["sequence", "joint", "base"] = "sequence"
    """sequence: the tasks one after another; joint: all at once; base: the untouched base model."""
    method: Literal["iclm", "lora"] = "iclm"
    """Of the training recipe."""
    guard: Literal["none", "ewc", "replay", "frozen_after_first"] = "none"
    """What protects the module that goes on learning (the invariant one, or plain LoRA)."""
    ewc: Ewc | None = None
    """Of this method with guard: ewc, in place of the recipe's."""
    replay: Replay | None = None
    """Of this method with guard: replay, in place of the recipe's."""
    boundaries: Literal["known", "unknown"] | None = None
    """Whether it is told where a task begins; null means as the recipe says. A method whose router opens no module by its error
    learns task by task: its boundaries are known."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Model settings."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings."""

    @model_validator(mode="after")
    def _fits(self) -> ContinualMethod:
        if self.kind == "base" and (self.model or self.training or self.method == "lora"):
            raise ValueError("the untouched base takes no method, model or training settings")
        if self.kind != "sequence" and (self.guard != "none" or self.boundaries is not None):
            raise ValueError(f"guard and boundaries are for kind: sequence; kind {self.kind} has no earlier task")
        for name in ("ewc", "replay"):
            if getattr(self, name) is not None and self.guard != name:
                raise ValueError(f"{name} is given, but guard is {self.guard}; it is of guard: {name}")
        if self.guard == "frozen_after_first" and self.method == "lora":
            raise ValueError("guard frozen_after_first leaves plain LoRA nothing to learn with; it is for method: iclm")
        if self.guard != "none" and self.model.get("ablation") == "no_invariant":
            raise ValueError(f"guard {self.guard} guards the invariant module, which ablation no_invariant leaves out")
        return self


class ContinualRecipe(Section):
    """A whole experiment."""

    base: str = "smollm2-135m"
    """Base model of all methods."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen base."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Model settings of all methods; num_domains is the number of modules that are open, and not given."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings of all methods and tasks."""
    boundaries: Literal["known", "unknown"] = "known"
    """Whether methods are told where a task begins."""
    novelty: Novelty = Novelty()
    """When a module is opened."""
    ewc: Ewc = Ewc()
    """Of methods with guard: ewc."""
    replay: Replay = Replay()
    """Of methods with guard: replay."""
    tasks: dict[str, Task] = Field(min_length=1)
    """Tasks by name."""
    orders: dict[str, list[str]] = Field(default_factory=dict)
    """Orders of tasks by name, each task once; empty means one order, as the tasks stand."""
    methods: dict[str, ContinualMethod] = Field(min_length=1)
    """Methods by name."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Of data order, initialisation and generated training problems."""

    @model_validator(mode="after")
    def _consistent(self) -> ContinualRecipe:
        if not self.orders:
            self.orders = {"given": list(self.tasks)}
        for name, order in self.orders.items():
            for task in order:
                if task not in self.tasks:
                    raise ValueError(f"orders.{name} names {task!r}; known are {', '.join(self.tasks)}")
                if order.count(task) > 1:
                    raise ValueError(f"orders.{name} has {task!r} twice; each task comes once")
            if not order:
                raise ValueError(f"orders.{name} is empty; name at least one task")
        for where, names in (("tasks", self.tasks), ("orders", self.orders), ("methods", self.methods)):
            for name in names:
                if not name or "/" in name or name != name.strip() or name in (".", ".."):
                    raise ValueError(
                        f"{where} has the name {name!r}; a name is part of a path, so no / and no blank at its ends"
                    )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; each comes once")
        for name, section in (
            ("model", self.model),
            *((f"methods.{n}.model", m.model) for n, m in self.methods.items()),
        ):
            if "num_domains" in section:
                raise ValueError(f"{name}.num_domains is given; modules are opened as tasks come, leave it out")
        return self

    @model_validator(mode="after")
    def _nothing_asked_is_trained_on(self) -> ContinualRecipe:
        training = [source for task in self.tasks.values() for source in task.train]
        one_way_to_ask([*training, *(source for task in self.tasks.values() for source in task.test)])
        for name, task in self.tasks.items():
            refuse_trained(f"tasks.{name}.test", task.test, training, self.seeds, "seeds")
        return self


def opens_by_error(recipe: ContinualRecipe, method: str) -> bool:
    """Whether a method's router decides from its error which module a prompt is of: the others open one a task, or none."""
    chosen = recipe.methods[method]
    usual = ModelSection.model_fields["router"].default
    router = merge(recipe.model, chosen.model).get("router", usual)
    return chosen.kind == "sequence" and chosen.method == "iclm" and router in WITH_CODES


def told_boundaries(recipe: ContinualRecipe, method: str) -> str:
    """known or unknown, as a method learns: one whose router opens no modules trains task by task, whatever the recipe says."""
    return (recipe.methods[method].boundaries or recipe.boundaries) if opens_by_error(recipe, method) else "known"


def only_read(recipe: ContinualRecipe, method: str, order: str, seed: int) -> ContinualRecipe:
    """The part of a recipe that one sequence of a method reads; what it does not read is as it is by default."""
    chosen = recipe.methods[method]
    unread: dict[str, Any] = {}
    if chosen.guard != "ewc" or chosen.ewc is not None:
        unread["ewc"] = Ewc()
    if chosen.guard != "replay" or chosen.replay is not None:
        unread["replay"] = Replay()
    if not opens_by_error(recipe, method):
        unread |= {"novelty": Novelty(), "boundaries": "known"}
    if chosen.kind == "base":
        unread |= {"model": {}, "training": {}}
    return recipe.model_copy(
        update={
            "orders": {order: recipe.orders[order]},
            "methods": {method: chosen},
            "tasks": {task: recipe.tasks[task] for task in recipe.orders[order]},
            "seeds": [seed],
            **unread,
        }
    )


def with_pinned_files(recipe: ContinualRecipe) -> ContinualRecipe:
    """The recipe with the SHA-256 of every file noted, so that a sequence on a file that changes is another one.

    Raises:
        ConfigurationError: a file that is trained on is tested on under another name.
    """
    tasks = {name: with_pinned(task, "train", "test") for name, task in recipe.tasks.items()}
    return checked_again(recipe.model_copy(update={"tasks": tasks}))


def load_continual(path: str | Path) -> ContinualRecipe:
    """Read the recipe of an experiment; file names in it are relative to its folder, else to the current one.

    Raises:
        ConfigurationError: no such file, no valid YAML, an unknown key, two tasks of one name or a value that cannot be
            used; one line.
    """
    path = Path(path)
    values, names = read_mapping(path)
    where = ", which extends ".join(names)
    recipe = validated(ContinualRecipe, values, where)
    for task in recipe.tasks.values():
        for source in (*task.train, *task.test):
            if source.file is not None:
                source.file = resolve(path, source.file)
    for name, method in recipe.methods.items():
        if method.boundaries == "unknown" and not opens_by_error(recipe, name):
            raise ConfigurationError(
                f"{where}: method {name}: boundaries is unknown, but it opens no module by the router's error and learns task by "
                f"task; boundaries are for method: iclm with router {' or '.join(WITH_CODES)}"
            )
        for order in recipe.orders:
            training_recipe(recipe, name, order, recipe.seeds[0], where)
    return recipe


def files_of(path: Path) -> set[Path]:
    """All files that the recipe in a file is made of: itself, those that it extends, and those of its sources."""
    sources = [source for task in load_continual(path).tasks.values() for source in (*task.train, *task.test)]
    files = [source.file for source in sources if source.file is not None]
    return {file.resolve() for file in (*map(Path, read_mapping(path)[1]), *files)}


def with_boundaries(recipe: ContinualRecipe, boundaries: str | None) -> ContinualRecipe:
    """The recipe with task boundaries "known" or "unknown"; None means as it says."""
    if boundaries is None:
        return recipe
    if boundaries not in ("known", "unknown"):
        raise ConfigurationError(f"task boundaries are {boundaries!r}; use known or unknown")
    return recipe.model_copy(update={"boundaries": boundaries})


def training_recipe(recipe: ContinualRecipe, method: str, order: str, seed: int, where: str = "recipe") -> Recipe:
    """What a method trains with on all tasks of an order; its `data.train` are the sources of all of them.

    Raises:
        ConfigurationError: settings that make no valid training, or that a sequence cannot have; the message names the
            method.
    """
    chosen = recipe.methods[method]
    sources = [source for task in recipe.orders[order] for source in sources_of(recipe, task, seed)]
    settings: dict[str, Any] = {"num_domains": len(recipe.orders[order]) if chosen.kind == "joint" else 1}
    if chosen.kind == "sequence":
        settings |= MODEL
    for part in (recipe.model, chosen.model):
        settings = merge(settings, part)
    if chosen.method == "lora":  # what is said of routers and splits to all methods is not for it
        settings = {
            key: value for key, value in settings.items() if key not in ("router", "split_layer")
        } | chosen.model
    values = {
        "method": chosen.method,
        "base": recipe.base,
        "dtype": recipe.dtype,
        "seed": seed,
        "data": {"train": [source.model_dump(mode="json") for source in sources]},
        "model": settings,
        "training": merge(recipe.training, chosen.training),
    }
    found = parse_recipe(values, f"{where}: method {method}")
    if chosen.kind == "sequence":
        _check_sequence(found, f"{where}: method {method}")
    return found


def _check_sequence(recipe: Recipe, where: str) -> None:
    """Raise `ConfigurationError` for settings with which modules cannot be opened one after another."""
    model, training = recipe.model, recipe.training
    if training.stages != "joint" or training.start_from is not None:
        field = "stages" if training.stages != "joint" else "start_from"
        raise ConfigurationError(f"{where}: training.{field} is not for a sequence; leave it out")
    if recipe.method == "lora":
        return
    if model.ablation == "no_domain":
        raise ConfigurationError(f"{where}: ablation no_domain leaves out what a sequence opens; use method: lora")
    if model.router not in (*WITH_CODES, "oracle"):
        raise ConfigurationError(
            f"{where}: router is {model.router!r}; a sequence takes {', '.join(WITH_CODES)} or oracle"
        )
    for name, wanted in (("active_domains", 1), ("router_level", "input")):
        if getattr(model, name) != wanted:
            raise ConfigurationError(f"{where}: model.{name} is {getattr(model, name)!r}; a sequence takes {wanted}")


def sources_of(recipe: ContinualRecipe, task: str, seed: int) -> list[DataSource]:
    """Training sources of a task, whose examples are of the domain of its name; generated problems have the sequence's seed."""
    found = [source.model_copy(update={"domain": task}) for source in recipe.tasks[task].train]
    return [source.model_copy(update={"seed": seed}) if source.generated else source for source in found]
