"""The recipe of a training as a YAML file: one section for the model, one for the data, one for the training.

    method: iclm                    # or lora, through the same trainer on the same examples
    base: smollm2-135m
    model: {num_domains: 2, router: vq}
    data:
      train:
        - {acre: IID, problems: 500, format: symbolic}
        - {file: my_task.jsonl, domain: mine}
    training: {epochs: 1, batch_size: 16, learning_rate: 1.0e-3}

Every field can be overridden on the command line as `section.field=value`. Unknown keys are errors.

    extends: other.yaml             # begin from another recipe: sections merge, everything else, lists too, replaces
    model: {mi_weight: 1.0}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from iclm.errors import ConfigurationError
from iclm.yaml_file import apply_overrides, place_of, read_mapping, resolve

SPLITS = ("train", "val", "test", "holdout")
"""Of generated problems; holdout of PVR only."""
ORIGINS = ("acre", "raven", "corr2cause", "pvr", "file", "dataset")
"""Where a source can come from; each source has one."""
ONLY_OF = {
    "answers": ("raven",),
    "variables": ("corr2cause",),
    "balanced": ("corr2cause",),
    "complexity": ("pvr",),
    "shift": ("pvr",),
    "objects": ("acre", "file"),
    "columns": ("file", "dataset"),
    "choices": ("file", "dataset"),
    "config": ("dataset",),
}
"""The origins that a setting of a source means something to, where these are not all."""


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation such as `int | None` names."""
    return {annotation, *get_args(annotation)}


class Section(BaseModel):
    """Base of all sections: no unknown keys, docstrings as descriptions. What YAML writes otherwise is converted where nothing is lost:
    seed: "5" is 5, pack: "off" is false, epochs: 2.0 is 2; a number is never made of true or false."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("a number is needed, not true or false")
        # YAML 1.1 reads 1e-3 as a text; everyone means a number
        if isinstance(value, str) and float in kinds:
            try:
                return float(value)
            except ValueError:
                return value
        return value


SectionT = TypeVar("SectionT", bound=Section)


class ModelSection(Section):
    """What is trained; the fields of `iclm.ICLMConfig`, which documents the formulas."""

    num_domains: int = 2
    """K, the number of domain-specific modules (ignored by method: lora, which has none)."""
    active_domains: int = 1
    """Domain modules that the router activates for each example."""
    split_layer: int | None = None
    """Layers below it carry no adapter; null means a quarter of the layers for iclm and 0 for lora."""
    lora_rank: int = 8
    """Rank of each module."""
    lora_alpha: float = 16.0
    """Scale of each module times its rank."""
    lora_dropout: float = 0.0
    """Dropout probability before each module."""
    target_modules: str | list[str] = "attention"
    """attention, all-linear, or a list of layer name endings."""
    ablation: str = "none"
    """none, no_invariant or no_domain: a side of the model that is left out."""
    router: str = "vq"
    """vq, kmeans, bisecting_kmeans, gumbel, soft, topk, oracle, random or fixed:i."""
    router_level: str = "input"
    """input (one route an example) or token."""
    router_layer: int | None = None
    """The layer whose input the router reads, -1 for the last hidden state; null means split_layer."""
    router_reduction: str = "pca"
    """pca, mds or none: how the router's features are reduced."""
    router_dim: int = 32
    """Dimensions of the features after the reduction."""
    router_temperature: float = 1.0
    """Temperature of the gates (gumbel, soft, topk)."""
    codebook_decay: float = 0.99
    """Decay of the codes' moving average."""
    dead_code_threshold: float = 0.0
    """Average number of examples a batch below which a code is replaced; 0 means that none is, and that idle codes stay."""
    aggregator: str = "mix"
    """mix, concat, logits or probas."""
    mix: str = "fixed"
    """How the weight of the invariant side is learned: fixed, gate or (mix only) low_rank."""
    mix_rank: int = 8
    """Rank of the low_rank residual."""
    router_weight: float = 0.1
    """Weight of the router's own loss. With vq and kmeans, whose codes are no parameters, it moves the figure of the loss and nothing else."""
    mi_weight: float = 0.01
    """Weight of the independence loss. The paper's, the default, is too small to make the modules independent (docs/independence.md)."""
    invariant_weight: float = 1.0
    """Weight of the language-modelling loss of the invariant module alone."""
    domain_weight: float = 1.0
    """Weight of the language-modelling loss of the domain module alone."""
    mi_loss: str = "plugin"
    """plugin (the paper's mutual information), club, infonce, hsic or cross_correlation."""
    mi_detach_domain: bool = False
    """The independence loss moves the invariant module only."""
    mi_projection: int | None = 64
    """Dimensions that states are projected to for the mutual information; null means the paper's softmax over all."""
    mi_queue: int = 1024
    """Past tokens kept for the mutual information."""
    mi_temperature: float = 0.5
    """Temperature of the softmax in the mutual information."""


class DataSource(Section):
    """One source of examples: generated problems, a file of any kind, or a Hugging Face data set."""

    acre: Literal["IID", "Comp", "Sys"] | None = None
    """Regime of generated ACRE problems."""
    raven: str | None = None
    """Configuration of generated RAVEN problems (center_single, distribute_four, ...)."""
    answers: Literal["raven", "iraven", "fair"] = "iraven"
    """Answer set of generated RAVEN problems."""
    ask: Literal["letter", "panel"] = "letter"
    """What RAVEN problems ask for: the letter of one of the answers shown, or the panel itself, with no answers shown and their
    panels as the choices."""
    score: Literal["sum", "mean"] = "sum"
    """How the log-likelihoods of a choice's tokens become its score, of which the highest is taken: their sum, which is the choice's own and
    favours short ones, or their mean, for choices of different lengths."""
    chat: bool = False
    """Whether prompts are written by the tokenizer's chat template, as an instruct base was trained on; else the contents of the messages are
    joined by line ends. What a run was trained on so is evaluated and asked so."""
    corr2cause: Literal["official", "renamed", "paraphrased"] | None = None
    """Wording of generated CORR2CAUSE questions; at one seed all wordings ask the same."""
    variables: list[Annotated[int, Field(ge=2, le=6)]] = Field(default=[3, 4, 5], min_length=1)
    """Numbers of variables of generated CORR2CAUSE questions, each 2 to 6."""
    balanced: bool = False
    """As many valid hypotheses as invalid ones in generated CORR2CAUSE questions."""
    pvr: Literal["mod_sum", "min", "max", "median", "majority"] | None = None
    """Aggregation of generated PVR problems."""
    complexity: int = Field(default=0, ge=0, le=2)
    """Complexity of generated PVR problems: the pointer names that many values and one."""
    shift: Literal["position", "permutation"] = "position"
    """What generated PVR problems hold out: it is in no split but holdout."""
    file: Path | None = None
    """An official ACRE JSON file, RAVEN problems as JSON lines, evals JSONL, or a table (CSV, TSV, Parquet, JSON lines) with `columns`."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 that the file has, as lower-case hexadecimal digits: another content is refused. null means whatever it holds. Runs,
    studies and sequences note it of each file: a run does not go on with others, and jobs are done again where a file has changed."""
    dataset: str | None = None
    """A Hugging Face data set: its name, or a folder that `save_to_disk` left; with `columns`."""
    columns: dict[str, Any] | None = None
    """Which columns make an example; the fields of `iclm.data.sources.ColumnMapping`: prompt, answer, choices, ..."""
    choices: list[str] | None = None
    """The choices of evals lines that list none."""
    config: str | None = None
    """Configuration of a data set."""
    split: str = "train"
    """Split of generated problems (train, val, test; of PVR also holdout), or of a data set."""
    seed: int = 0
    """Seed of generated problems, and of the shuffles of strict objects."""
    problems: int | None = Field(default=None, ge=1)
    """Number of problems (of CORR2CAUSE questions): needed for generated ones; of a file of ACRE or RAVEN problems the first so many."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many examples."""
    format: Literal["symbolic", "text"] | None = None
    """Rendering of ACRE and RAVEN problems."""
    objects: Literal["official", "strict"] = "official"
    """Rendering of ACRE objects: as published, or with the shift of Comp kept and the order shuffled."""
    shifted: bool | None = None
    """Whether it lies outside the training distribution; null means: it is of a regime, configuration, wording, number of
    variables or PVR task that no training source is of, or of what one of PVR holds out."""
    domain: str | None = None
    """Name of the domain; null means the format for ACRE and RAVEN problems, corr2cause, pvr, or the file's name."""

    @property
    def generated(self) -> bool:
        """Whether its problems are generated, and so depend on the seed."""
        return self.file is None and self.dataset is None

    @model_validator(mode="after")
    def _one_origin(self) -> DataSource:
        origins = [name for name in ORIGINS if getattr(self, name) is not None]
        if len(origins) != 1:
            raise ValueError("give one of acre, raven, corr2cause and pvr (problems to generate), file and dataset")
        if self.acre is not None or self.raven is not None:
            if self.problems is None or self.format is None:
                raise ValueError("generated problems need problems (how many) and format (symbolic or text)")
        elif self.generated:
            if self.problems is None:
                raise ValueError("generated problems need problems (how many)")
            if self.format is not None:
                raise ValueError("format is for ACRE and RAVEN; CORR2CAUSE and PVR have one rendering, leave it out")
        if self.sha256 is not None and self.file is None:
            raise ValueError("sha256 is that of a file, and this source has none")
        splits = SPLITS if self.pvr is not None else SPLITS[:3]
        if self.generated and self.split not in splits:
            raise ValueError(f"split is {self.split!r}; of these problems it is one of {', '.join(splits)}")
        for name, known in ONLY_OF.items():
            if origins[0] not in known and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for {' and '.join(known)}; this source is of {origins[0]}, leave it out")
        if self.ask == "panel" and self.raven is None and (self.file is None or self.columns is not None):
            raise ValueError("ask: panel is for RAVEN problems, generated or in a file of them")
        return self


def one_way_to_ask(sources: Iterable[DataSource]) -> None:
    """Raise ValueError unless all sources have the same `chat`: a run asks in one way."""
    if len({source.chat for source in sources}) > 1:
        raise ValueError(
            "some sources have chat: true and others not; a model is trained, chosen and tested in one way"
        )


class DataSection(Section):
    """What is trained and validated on."""

    train: list[DataSource] = Field(min_length=1)
    """Sources of training examples; each domain name becomes a domain, numbered in order of appearance."""
    validation: list[DataSource] = []
    """Sources that are evaluated when the training is done; never trained on."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt plus answer in tokens; null means the base model's context."""
    pack: bool = True
    """Compute the shared prefix of the queries of one problem once; changes speed, not results. Bases with recurrent layers never do."""

    @model_validator(mode="after")
    def _one_way(self) -> DataSection:
        one_way_to_ask([*self.train, *self.validation])
        return self


class TrainingSection(Section):
    """How it is trained."""

    stages: Literal["joint", "two_stage"] = "joint"
    """joint (all losses at once), or two_stage: first the invariant module alone, then router, domain modules and aggregator."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the training examples; of two_stage those of the second stage."""
    invariant_epochs: int = Field(default=1, ge=1)
    """Passes of the invariant module alone (two_stage)."""
    invariant_rate: float = Field(default=0.0, ge=0, le=1)
    """Factor on the invariant module's learning rate in the second of two_stage; 0 means that it is frozen."""
    start_from: Path | None = None
    """A saved ICLM of the same base and configuration (a run folder or RUN/stages/invariant) to start from; null means afresh."""
    batch_size: int = Field(default=16, ge=1)
    """Examples in a batch, at most; with a few thousand examples batches of 4 taught more than batches of 16 (docs/results.md)."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Padded tokens in a batch, at most (a longer sequence is a batch of its own); null means no limit."""
    auto_find_batch_size: bool = False
    """Where memory runs out, start again with a tenth less in a batch, of examples and tokens (accelerate's rule)."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Batches in an optimizer step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the adapters (AdamW)."""
    aggregator_learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of the aggregator's own parameters, where it has any."""
    router_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the router's own parameters, where it has any."""
    critic_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the independence loss's own estimator, where it has one."""
    mi_start: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps (of two_stage those of the second stage) before which the independence loss has no weight."""
    mi_ramp: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps over which its weight then rises to model.mi_weight, which the step after them has first."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    """Learning rate after the warm-up."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled to at most this norm; 0 means never."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the layers with torch.compile: a first step of half a minute or more, then faster ones; results change by rounding."""
    router_examples: int = Field(default=256, ge=1)
    """Examples that the router is started from; more where these lack a domain."""
    cache_features: bool = True
    """Where the router reads above the split: its features are computed once a data set and kept on disk; false means in every step. Routes by token need them in every step."""
    logging_steps: int = Field(default=10, ge=1)
    """Optimizer steps between two lines of the log."""
    save_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between two checkpoints to resume from; null means none."""
    report_to: list[str] = []
    """Logging integrations of transformers (tensorboard, wandb, ...)."""

    @model_validator(mode="after")
    def _weight_arrives(self) -> TrainingSection:
        if self.mi_start + self.mi_ramp > 1:
            raise ValueError(
                f"mi_start {self.mi_start} and mi_ramp {self.mi_ramp} are shares of the steps; together they must be at most 1"
            )
        return self


class Recipe(Section):
    """A whole training."""

    method: Literal["iclm", "lora"] = "iclm"
    """iclm, or plain LoRA through the same trainer."""
    base: str = "smollm2-135m"
    """Base model: smollm2-135m, a folder, a GGUF file or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen base; auto means bfloat16 where the device is fast at it. (In float16 small gradients would become zero.)"""
    quantization: Literal["none", "nf4"] = "none"
    """nf4: the base's linear layers in 4 bits (QLoRA's; needs an NVIDIA GPU and iclm[4bit]); none: in dtype."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the adapters' start, the data order and everything else drawn."""
    model: ModelSection = ModelSection()
    """What is trained."""
    data: DataSection
    """What it is trained on."""
    training: TrainingSection = TrainingSection()
    """How it is trained."""

    @model_validator(mode="after")
    def _both_sides(self) -> Recipe:
        if self.training.stages == "joint":
            for name in ("invariant_epochs", "invariant_rate"):
                value = getattr(self.training, name)
                if value != TrainingSection.model_fields[name].default:
                    raise ValueError(
                        f"training.{name} is {value}; it is of training.stages: two_stage, and stages is joint"
                    )
        if self.training.stages == "two_stage":
            if self.method == "lora":
                raise ValueError("training.stages is two_stage; plain LoRA (method: lora) has one module, use joint")
            if self.model.ablation != "none":
                raise ValueError(
                    f"training.stages is two_stage; with model.ablation {self.model.ablation} there is one side only, use joint"
                )
            if self.model.mi_detach_domain and not self.training.invariant_rate and self.model.mi_weight:
                raise ValueError(
                    "model.mi_detach_domain leaves the independence loss to the invariant module, which training.invariant_rate 0 freezes in "
                    "the second of two_stage: nothing would follow it; give a rate, or leave out mi_detach_domain"
                )
        return self


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides; paths in it are relative to its folder, else to the current one.

    Raises:
        ConfigurationError: no such file, no valid YAML, an unknown key or a value of the wrong type; one line.
    """
    path = Path(path)
    values, names = read_mapping(path)
    recipe = parse_recipe(apply_overrides(values, overrides), ", which extends ".join(names))
    for source in (*recipe.data.train, *recipe.data.validation):
        if source.file is not None:
            source.file = resolve(path, source.file)
    if recipe.training.start_from is not None:
        recipe.training.start_from = resolve(path, recipe.training.start_from)
    recipe.base = place_of(recipe.base, path)
    return recipe


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a recipe given as a mapping; raises `ConfigurationError` with the first fault in one line."""
    return validated(Recipe, values, where)


def validated(root: type[SectionT], values: Any, where: str = "") -> SectionT:
    """A recipe of a kind, given as a mapping; raises `ConfigurationError`, which begins with `where`, with the first fault in one line."""
    try:
        return root.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(": ".join(filter(None, (where, explain(error, root))))) from error


def checked_again(section: SectionT) -> SectionT:
    """A recipe that was changed since it was read, as it is; raises `ConfigurationError` if it would not be read so."""
    validated(type(section), section.model_dump())
    return section


def explain(error: ValidationError, root: type[Section]) -> str:
    """The first fault of a recipe in one line, with the key that was probably meant."""
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = list(_section_at(root, fault["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        return f"{key} is not a recipe key; {hint}"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = fault.get("input")
    shown = "" if isinstance(given, (dict, list)) or fault["type"] == "missing" else f" (given {given!r})"
    return f"{key or 'recipe'}: {message}{shown}"


def _section_at(root: type[Section], location: tuple[int | str, ...]) -> type[Section]:
    """The section that a place in a recipe is of; an entry of a list or of a mapping of sections is one of them."""
    section = root
    for part in location:
        field = section.model_fields.get(str(part))
        if field is not None:
            inner = [kind for kind in _leaves(field.annotation) if isinstance(kind, type) and issubclass(kind, Section)]
            section = inner[0] if inner else section
    return section


def _leaves(annotation: Any) -> Iterable[Any]:
    """The types that an annotation is made of: of `list[A] | None` A and None."""
    inner = get_args(annotation)
    return [leaf for part in inner for leaf in _leaves(part)] if inner else [annotation]


def parse_columns(text: str | None) -> dict[str, Any] | None:
    """A mapping of columns given on the command line as YAML, such as "{prompt: question, answer: right}".

    Raises:
        ConfigurationError: the text is no mapping of names.
    """
    if text is None:
        return None
    try:
        columns = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        columns = None
    if not isinstance(columns, dict) or not all(isinstance(key, str) for key in columns):
        raise ConfigurationError(f"columns is {text!r}; write a mapping such as '{{prompt: question, answer: right}}'")
    return columns


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
