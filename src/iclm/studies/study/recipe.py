"""The recipe of a study: methods × data × seeds, and how hyper-parameters are chosen.

    base: smollm2-135m
    training: {batch_size: 4}                       # of every method
    data:
      acre:
        train: [{acre: IID, problems: 250, format: symbolic}]
        validation: [{acre: IID, split: val, problems: 40, format: symbolic}]
        test: [{acre: Sys, split: test, problems: 60, format: symbolic}]
    methods:
      lora: {method: lora}
      iclm: {}
      iclm-no-mi: {model: {mi_weight: 0.0}, tuned_as: iclm}
      iclm-rank-32: {model: {lora_rank: 32}}
      shallow: {kind: strategy, strategy: shallow rule}
      xlora: {kind: xlora}
    search: {tries: 4, space: {training.learning_rate: {low: 2.0e-4, high: 2.0e-3, log: true}}}
    grid:
      - {methods: [lora, iclm], seeds: [0, 1, 2]}
      - {methods: [iclm-no-mi], seeds: [0, 1, 2]}
      - {methods: [iclm-rank-32], tries: 1}         # on validation questions only

A method is what it changes of the training recipe that all share. The grid is run block by block. Test sources are read by
the jobs that report them and by nothing else: hyper-parameters are chosen by jobs that are given the validation
sources only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from iclm.data.loading import distribution, overlap, refuse_trained, with_pinned
from iclm.errors import ConfigurationError
from iclm.evaluation.sides import acre_regime, is_shifted
from iclm.recipe import (
    DataSource,
    ModelSection,
    Recipe,
    Section,
    TrainingSection,
    checked_again,
    one_way_to_ask,
    validated,
)
from iclm.yaml_file import merge, read_mapping, resolve

_FIELDS = {"model": ModelSection.model_fields, "training": TrainingSection.model_fields}


class DataSet(Section):
    """What is trained on, chosen on and tested on."""

    train: list[DataSource] = Field(min_length=1)
    """Training sources; a job's seed takes the place of theirs where problems are generated."""
    validation: list[DataSource] = Field(min_length=1)
    """Of the training distribution; the only examples that a choice is made by."""
    test: list[DataSource] = Field(min_length=1)
    """What is reported."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Model settings that these data need, such as num_domains."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings that these data need."""
    tuned_as: str | None = None
    """The data set for which the hyper-parameters of these were chosen; null means tries on their own validation questions."""
    search: bool = True
    """Whether hyper-parameters are chosen at all; false means that every method has those of the recipe."""

    @model_validator(mode="after")
    def _one_choice(self) -> DataSet:
        if self.tuned_as is not None and not self.search:
            raise ValueError(f"tuned_as is {self.tuned_as!r} and search false: nothing is chosen then; leave out one")
        return self

    @model_validator(mode="after")
    def _one_question(self) -> DataSet:
        one_way_to_ask([*self.train, *self.validation, *self.test])
        for name in ("validation", "test"):
            asked = {source.ask for source in getattr(self, name) if source.raven is not None}
            if len(asked) > 1:
                raise ValueError(
                    f"{name} asks RAVEN problems for letters and for panels, which are two tasks; make two data sets"
                )
        return self

    @model_validator(mode="after")
    def _nothing_is_chosen_on_a_test(self) -> DataSet:
        for number, source in enumerate(self.validation):
            if source.split in ("test", "holdout"):
                what = f"is of split {source.split}"
            elif any(overlap(source, test) for test in self.test):
                what = "asks problems of a test source"
            elif is_shifted(source, self.train):
                what = "lies outside the training distribution"
            else:
                continue
            raise ValueError(
                f"validation.{number} {what}; hyper-parameters are chosen by it, so give questions of the training "
                "distribution that no test asks"
            )
        return self


class XLora(Section):
    """The gate of X-LoRA; names and defaults are those of PEFT's XLoraConfig."""

    xlora_depth: int = Field(default=1, ge=1)
    """Linear layers of the gate."""
    xlora_size: int = Field(default=2048, ge=1)
    """Its hidden size, where it has more than one layer."""
    xlora_dropout_p: float = Field(default=0.2, ge=0, lt=1)
    """Its dropout, where it has more than one layer."""
    layerwise_scalings: bool = False
    """Scalings of their own for each adapted layer."""
    softmax_temperature: float = Field(default=1.0, gt=0)
    """Temperature of the softmax over the adapters."""
    top_k_lora: int | None = Field(default=None, ge=1)
    """Adapters that are used for a token; null means all."""


# the model settings that a method of kind: xlora may change
XLORA_MODEL = {"num_domains", "lora_rank", "lora_alpha", "lora_dropout", "target_modules"}


UNTRAINED = ("base", "strategy")  # kinds of methods that have no hyper-parameters


class Method(Section):
    """One method: what it changes of the shared recipe."""

    kind: Literal["trained", "base", "strategy", "xlora"] = "trained"
    """trained; base: the untouched base model; strategy: a cheap strategy that answers without a model; or xlora: PEFT's X-LoRA
    (`iclm.studies.study.xlora`), with num_domains adapters."""
    strategy: str | None = None
    """Name of the cheap strategy (strategy only): one of `iclm data audit`, such as majority, or shallow rule (of ACRE)."""
    method: Literal["iclm", "lora"] = "iclm"
    """Of the training recipe (trained only)."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Model settings."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings."""
    shots: int = Field(default=0, ge=0)
    """Solved training examples before each question (base only)."""
    xlora: XLora | None = None
    """Settings of the gate (xlora only); null means PEFT's defaults."""
    tuned_as: str | None = None
    """The method whose chosen hyper-parameters it takes, so that an ablation differs in one thing; null means its own tries."""
    compared_with: list[str] = Field(default_factory=list)
    """Methods that it is compared with beside the reference and what it is an ablation of, such as LoRA of as many parameters."""

    @model_validator(mode="after")
    def _fits(self) -> Method:
        if self.kind in UNTRAINED and (self.model or self.training or self.tuned_as):
            what = "the untouched base" if self.kind == "base" else "a cheap strategy"
            raise ValueError(f"{what} takes no model or training settings and no tuned_as")
        if self.kind != "base" and self.shots:
            raise ValueError("shots are for kind: base")
        if (self.kind == "strategy") != (self.strategy is not None):
            raise ValueError("kind: strategy and strategy, the name of one, belong together")
        if self.strategy is not None:
            from iclm.data.audit.strategies import BY_NAME  # scikit-learn comes with it

            if self.strategy not in BY_NAME:
                raise ValueError(f"strategy is {self.strategy!r}; known are {'; '.join(BY_NAME)}")
        if self.kind != "xlora" and self.xlora is not None:
            raise ValueError("xlora is for kind: xlora")
        foreign = sorted({*self.model} - XLORA_MODEL) if self.kind == "xlora" else []
        if foreign:
            raise ValueError(f"model.{foreign[0]} means nothing to X-LoRA; it takes {', '.join(sorted(XLORA_MODEL))}")
        return self


class Range(Section):
    """Values that a hyper-parameter is drawn from: between two bounds, or out of a list."""

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Uniform in the logarithm."""
    values: list[Any] | None = None
    """The values to draw from, in place of bounds."""

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        bounded = self.low is not None and self.high is not None
        if bounded == (self.values is not None):
            raise ValueError("give either low and high, or values")
        if self.values is not None and (not self.values or self.log or self.low is not None or self.high is not None):
            raise ValueError("values is a list with at least one entry, and stands alone")
        if (
            self.low is not None
            and self.high is not None
            and not (self.low < self.high and (self.low > 0 or not self.log))
        ):
            raise ValueError("low must be below high, and above 0 with log")
        return self


class Search(Section):
    """Random search with as many tries for every method, as in DomainBed (Gulrajani & Lopez-Paz, ICLR 2021)."""

    tries: int = Field(ge=1)
    """Trainings of each method and data set; the first has the recipe's own values."""
    seed: int = Field(default=10_000, ge=0)
    """Of the draws, and of the trainings; no seed of the grid."""
    space: dict[str, Range] = Field(min_length=1)
    """Range of each hyper-parameter, named as in a training recipe: training.learning_rate."""

    @model_validator(mode="after")
    def _hyper_parameters(self) -> Search:
        for name in self.space:
            section, _, field = name.partition(".")
            if field not in _FIELDS.get(section, ()):
                raise ValueError(
                    f"space names {name!r}; name a field of model or training, such as training.learning_rate"
                )
        return self


class Block(Section):
    """Jobs that belong together: all combinations of methods, data sets and seeds."""

    methods: list[str] = Field(min_length=1)
    """Names of methods."""
    data: list[str] | None = None
    """Names of data sets; null means all."""
    seeds: list[int] = Field(default_factory=list)
    """Seeds: of data order, initialisation and generated training problems; none: what is compared are tries, on validation questions."""
    tries: int | None = Field(default=None, ge=1)
    """How many of the tries are run, in a block without seeds; null means all."""

    @model_validator(mode="after")
    def _tries_or_seeds(self) -> Block:
        if self.seeds and self.tries is not None:
            raise ValueError("tries is for a block without seeds; reports need all tries of the search")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; each comes once")
        return self


class StudyRecipe(Section):
    """A whole study."""

    base: str = "smollm2-135m"
    """Base model of all methods."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen base."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Model settings of all methods."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings of all methods."""
    data: dict[str, DataSet] = Field(min_length=1)
    """Data sets by name."""
    methods: dict[str, Method] = Field(min_length=1)
    """Methods by name."""
    search: Search | None = None
    """How hyper-parameters are chosen; null means that they are as given."""
    grid: list[Block] = Field(min_length=1)
    """What is run, in this order; a job that occurs twice is run once."""
    reference: str = "lora"
    """The method that the others are compared with."""

    def _has_tries(self, number: int, block: Block) -> None:
        """Raise ValueError where a block without seeds has nothing to run."""
        if self.search is None:
            raise ValueError(f"grid.{number} has no seeds, and there is no search whose tries could be run; name seeds")
        if block.tries is not None and block.tries > self.search.tries:
            raise ValueError(f"grid.{number}.tries is {block.tries}; search.tries is {self.search.tries}")
        for name in block.methods:
            if self.methods[name].kind in UNTRAINED or self.methods[name].tuned_as is not None:
                raise ValueError(f"grid.{number} has no seeds, and {name!r} has no tries of its own; name seeds")
        for data in block.data or self.data:
            if self.data[data].tuned_as is not None or not self.data[data].search:
                raise ValueError(f"grid.{number} has no seeds, and there are no tries on {data!r}; name seeds")

    def _leaves_what_is_chosen(self, name: str, part: Method | DataSet) -> None:
        """Raise ValueError where a method or data set that takes another's hyper-parameters sets one of them, which would be lost."""
        for key in self.search.space if self.search is not None else ():
            section, _, field = key.partition(".")
            if field in getattr(part, section):
                raise ValueError(
                    f"{name} sets {key}, which is chosen for {part.tuned_as!r}; leave out tuned_as or the setting"
                )

    def _is_tuned_in_distribution(self, name: str, data: DataSet, other: DataSet | None) -> None:
        """Raise ValueError where the data that a set takes its hyper-parameters from have none, ask what it is tested on, or what is
        shifted for it."""
        if other is None or other.tuned_as is not None or not other.search:
            raise ValueError(f"data.{name}.tuned_as is {data.tuned_as!r}; name a data set with tries of its own")
        held_out = [source for source in data.test if is_shifted(source, data.train)]
        for number, source in enumerate(other.validation):
            if any(overlap(source, test) for test in data.test):
                raise ValueError(
                    f"data.{name}.tuned_as is {data.tuned_as!r}, whose validation.{number} asks problems that {name} is tested on; give "
                    "other problems there, or leave tuned_as out for tries of its own"
                )
            if is_shifted(source, data.train) and any(_holds(source, test) for test in held_out):
                raise ValueError(
                    f"data.{name}.tuned_as is {data.tuned_as!r}, whose validation.{number} lies outside the training distribution of "
                    f"{name} and asks what its tests hold out; leave tuned_as out for tries of its own, or say search: false"
                )

    @model_validator(mode="after")
    def _plain_names(self) -> StudyRecipe:
        for kind, names in (("methods", self.methods), ("data", self.data)):
            for name in names:
                if not re.fullmatch(r"[^/\x00-\x1f]+", name):
                    raise ValueError(
                        f"{kind} holds the name {name!r}; a job is named data/method, so use a name without / and line ends"
                    )
        return self

    @model_validator(mode="after")
    def _names(self) -> StudyRecipe:
        for number, block in enumerate(self.grid):
            for kind, names, known in (("methods", block.methods, self.methods), ("data", block.data or [], self.data)):
                for name in names:
                    if name not in known:
                        raise ValueError(f"grid.{number}.{kind} names {name!r}; known are {', '.join(known)}")
            if not block.seeds:
                self._has_tries(number, block)
            if self.search is not None and self.search.seed in block.seeds:
                raise ValueError(
                    f"grid.{number}.seeds holds {self.search.seed}, the seed of the search; its trainings must not be reported"
                )
        for name, method in self.methods.items():
            for against in method.compared_with:
                if against not in self.methods or against in (name, method.tuned_as, self.reference):
                    raise ValueError(
                        f"methods.{name}.compared_with names {against!r}; name methods other than itself, the reference and "
                        "what it is tuned as, with which it is compared anyway"
                    )
            other = method.tuned_as
            if other is None:
                continue
            tuned = self.methods.get(other)
            if tuned is None or tuned.tuned_as is not None or tuned.kind != "trained":
                raise ValueError(f"methods.{name}.tuned_as is {other!r}; name a method with tries of its own")
            self._leaves_what_is_chosen(f"methods.{name}", method)
        for name, data in self.data.items():
            if data.tuned_as is not None:
                self._is_tuned_in_distribution(name, data, self.data.get(data.tuned_as))
                self._leaves_what_is_chosen(f"data.{name}", data)
        if self.reference not in self.methods:
            raise ValueError(f"reference is {self.reference!r}; known are {', '.join(self.methods)}")
        return self

    @model_validator(mode="after")
    def _nothing_asked_is_trained_on(self) -> StudyRecipe:
        seeds = [seed for block in self.grid for seed in block.seeds]
        seeds += [self.search.seed] if self.search is not None else []
        for name, data in self.data.items():
            for part in ("validation", "test"):
                refuse_trained(f"data.{name}.{part}", getattr(data, part), data.train, seeds, "the grid and the search")
        return self


def _holds(source: DataSource, test: DataSource) -> bool:
    """Whether a source has problems such as a test's: of the same distribution, of which ACRE's IID is of all regimes."""
    regime, tested = acre_regime(source), acre_regime(test)
    if regime is not None and tested is not None:
        return regime[0] in ("IID", tested[0])
    return distribution(source) is not None and distribution(source) == distribution(test)


def load_study(path: str | Path) -> StudyRecipe:
    """Read the recipe of a study; file names in it are relative to its folder, else to the current one.

    Raises:
        ConfigurationError: no such file, no valid YAML, an unknown key or a value of the wrong type; one line.
    """
    path = Path(path)
    values, names = read_mapping(path)
    study = validated(StudyRecipe, values, ", which extends ".join(names))
    for data in study.data.values():
        for source in (*data.train, *data.validation, *data.test):
            if source.file is not None:
                source.file = resolve(path, source.file)
    return study


def with_pinned_files(study: StudyRecipe) -> StudyRecipe:
    """The recipe with the SHA-256 of every file noted, so that a job on a file that changes is another job.

    Raises:
        ConfigurationError: files of other names hold the same, so that what is asked is trained on or what is chosen by is tested on.
    """
    data = {name: with_pinned(part, "train", "validation", "test") for name, part in study.data.items()}
    return checked_again(study.model_copy(update={"data": data}))


def check_xlora(recipe: Recipe, xlora: XLora, where: str) -> None:
    """Raise `ConfigurationError`, which begins with `where`, for a training that PEFT's X-LoRA cannot be given."""
    training, adapters = recipe.training, recipe.model.num_domains
    if adapters < 1:
        raise ConfigurationError(f"{where}: model.num_domains is {adapters}; X-LoRA needs at least one adapter")
    if xlora.top_k_lora is not None and xlora.top_k_lora > adapters:
        raise ConfigurationError(f"{where}: xlora.top_k_lora is {xlora.top_k_lora}; there are {adapters} adapters")
    for name, given, why in (
        ("start_from", training.start_from is not None, "it is trained from fresh adapters"),
        ("gradient_checkpointing", training.gradient_checkpointing, "its scalings are gone when a layer is run again"),
        ("compile", training.compile, "it compiles the layers of an ICLM"),
    ):
        if given:
            raise ConfigurationError(f"{where}: training.{name} is not for X-LoRA: {why}; leave it out")


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Mappings laid over each other; later ones win, sections merge."""
    found: dict[str, Any] = {}
    for part in parts:
        found = merge(found, part)
    return found
