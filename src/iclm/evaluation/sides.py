"""The examples that a run is diagnosed on, in two sides, with every module's answers.

    iid     sources of the training distribution         ood     shifted ones

Beside the modules each side knows the answers of the untouched base model: all modules off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iclm.data.acre.regimes import infer_regime
from iclm.data.collation import EncodedExample, problems_of
from iclm.data.loading import distribution, source_name
from iclm.errors import ConfigurationError
from iclm.evaluation.evaluate_run import domain_name, evaluation_sources, read_for
from iclm.evaluation.metrics import Accuracy, majority_baseline
from iclm.evaluation.runs import FINISHED, RECIPE, Run, load_run
from iclm.evaluation.scoring import Scores, score
from iclm.model import ICLMForCausalLM
from iclm.recipe import DataSection, DataSource, load_recipe

STAGE = Path("stages") / "invariant"  # where a two-stage training leaves the end of its first stage

Progress = Callable[[str, int], Callable[[int], None]]


def is_shifted(source: DataSource, training: Sequence[DataSource]) -> bool:
    """Whether a source lies outside the training distribution.

    As it says itself (`shifted`). Else: ACRE problems of a regime that no training source is of, or of the other side of
    one that changes between training and test (`_regime`), generated RAVEN problems of a configuration that none is of,
    CORR2CAUSE questions in a wording or with a number of variables that none has in it, and PVR problems of a task that
    none is of, or of what the training of that task holds out; at complexity 0, where one value is pointed to, all aggregations
    are one task. A file tells its regime by an official name (Sys_test.json); where neither it nor the
    training does, it is taken to be of the training distribution.
    """
    if source.shifted is not None:
        return source.shifted
    if source.corr2cause is not None:
        known_sizes = [size for item in training if item.corr2cause == source.corr2cause for size in item.variables]
        return not set(source.variables) <= set(known_sizes)
    if source.pvr is not None:
        tasks = [item for item in training if item.pvr is not None and item.complexity == source.complexity]
        same = [item for item in tasks if item.pvr == source.pvr or source.complexity == 0]
        held_out = any(item.shift == source.shift and item.split != "holdout" for item in same)
        return not same or (source.split == "holdout" and held_out)
    if source.raven is not None:
        return distribution(source) not in {distribution(item) for item in training}
    known, regime = {acre_regime(item) for item in training}, acre_regime(source)
    return regime is not None and regime not in known and (source.acre is not None or known != {None})


def acre_regime(source: DataSource) -> tuple[str, bool] | None:
    """Regime of ACRE problems, where it is known, and whether they are of its changed side.

    In Sys, three trials of a training problem light up and four of a problem of the other splits; in Comp, other objects
    do, which only strict rendering shows. IID is the same in all splits.
    """
    if source.acre is not None:
        regime, split = str(source.acre), str(source.split)
    elif source.file is not None and (told := infer_regime(source.file)) is not None:
        regime, split = told
    else:
        return None
    changes = regime == "Sys" or (regime == "Comp" and source.objects == "strict")
    return regime, changes and split != "train"


def _recipe_data(folder: Path) -> DataSection:
    """What the recipe of a run says of its data; raises `ConfigurationError`."""
    path = folder / RECIPE
    if not path.is_file():
        raise ConfigurationError(f"{folder} holds no recipe.yaml to take validation sources from; pass --data FILE")
    return load_recipe(path).data


def sources_for(arguments: Sequence[str], run: Run, *, limit: int | None = None, **options: Any) -> list[DataSource]:
    """What a run is evaluated on: the files that `--data` arguments name, else the validation sources of its recipe.

    Args:
        limit: examples of each source, at most.
        options: as of `evaluation_sources`.

    Raises:
        ConfigurationError: there is neither, or an option of files without one.
        DataError: a file that cannot be read.
    """
    found = evaluation_sources(arguments, run, limit=limit, **options)
    if found:
        return found
    for name, option in (
        ("format", "--format"),
        ("objects", "--strict"),
        ("columns", "--columns"),
        ("score", "--score"),
    ):
        if options.get(name) not in (None, "official", "sum"):
            raise ConfigurationError(f"{option} is for files; name them with --data FILE, or leave it out")
    known = _recipe_data(run.folder).validation
    if not known:
        raise ConfigurationError(f"{run.folder / RECIPE}: the recipe names no validation sources; pass --data FILE")
    return [s if limit is None else s.model_copy(update={"limit": min(limit, s.limit or limit)}) for s in known]


def recipe_sources(folder: Path) -> tuple[list[DataSource], list[DataSource]]:
    """The validation sources of a run's recipe: those of the training distribution, and the others.

    Raises:
        ConfigurationError: none of them is of the training distribution, or the recipe cannot be read.
    """
    data = _recipe_data(folder)
    shifted = [is_shifted(source, data.train) for source in data.validation]
    iid = [source for source, far in zip(data.validation, shifted, strict=True) if not far]
    if not iid:
        what = (
            "all validation sources are out of distribution"
            if data.validation
            else "the recipe names no validation sources"
        )
        raise ConfigurationError(f"{folder / RECIPE}: {what}; pass --data FILE of the training distribution")
    return iid, [source for source, far in zip(data.validation, shifted, strict=True) if far]


def earlier_run(run: Run, folder: Path | None = None, base: str | None = None) -> Run | None:
    """What a run is compared with: the folder given, else the end of the run's own first stage; None if there is none.

    Args:
        folder: a run folder, or any saved ICLM; the latter is taken to know the domains of `run`.
        base: the base model, if it is not where the folder says.

    Raises:
        CheckpointError: a folder that cannot be loaded.
        ConfigurationError: it was made from another base model, so the examples are not the same.
    """
    if folder is None:
        folder = run.folder / STAGE
        if not folder.is_dir():
            return None
    quantization = run.model.config.base["quantization"]  # one base for both
    if (folder / FINISHED).is_file():
        found = load_run(folder, base=base, quantization=quantization)
    else:
        model = ICLMForCausalLM.from_pretrained(folder, base=base, quantization=quantization).to(run.model.device)
        found = Run(folder, model, run.tokenizer, run.record)
    if found.model.config.base.get("fingerprint") != run.model.config.base.get("fingerprint"):
        raise ConfigurationError(
            f"{folder} was made from another base model than {run.folder}; compare runs of one base"
        )
    return found


@dataclass(frozen=True)
class Side:
    """The examples of one side, "iid" or "ood", and how they were answered.

    Attributes:
        sources: what they were read from, with n and how many are of each domain.
        examples: all of them.
        scores: of the mixture and of every module.
        correct: by module, and for "base", the untouched base model: whether each answer was right, bool [n].
    """

    name: str
    sources: list[dict[str, Any]]
    examples: list[EncodedExample]
    scores: Scores
    correct: dict[str, np.ndarray]

    @cached_property
    def problems(self) -> np.ndarray:
        """A key of the problem of each example, [n]."""
        return np.array(problems_of(self.examples), dtype=object)

    @property
    def domains(self) -> np.ndarray:
        """Name of the true domain of each example, [n]."""
        return np.array([domain_name(item) for item in self.examples])

    def accuracy(self, module: str) -> dict[str, Any]:
        """Accuracy over all examples and by domain."""
        right, domains = self.correct[module], self.domains
        groups = self.problems

        def of(chosen: np.ndarray) -> dict[str, Any]:
            return Accuracy.of(right[chosen].tolist(), groups[chosen].tolist()).to_dict()

        by_domain = {name: of(domains == name) for name in sorted(set(domains.tolist()))}
        return {"overall": of(np.ones(len(right), bool)), "by_domain": by_domain}

    def majority(self) -> dict[str, Any]:
        """Accuracy of always giving the most frequent answer of the domain."""
        answers: dict[str, list[str]] = {}
        for item in self.examples:
            answers.setdefault(domain_name(item), []).append(item.example.answer)
        best = {name: majority_baseline(found) for name, found in sorted(answers.items())}
        overall = Accuracy(sum(a.correct for a in best.values()), sum(a.n for a in best.values()))
        return {"overall": overall.to_dict(), "by_domain": {name: found.to_dict() for name, found in best.items()}}


def answer_with(
    model: ICLMForCausalLM,
    examples: Sequence[EncodedExample],
    modules: Sequence[str],
    pad: int,
    tick: Callable[[int], None] | None,
    states: bool = False,
) -> tuple[Scores, dict[str, np.ndarray]]:
    """Scores of modules, and whether each answer is right; raises `ConfigurationError` if a score is not finite."""
    scores = score(model, examples, modules=modules, pad=pad, states=states, progress=tick)
    answers = np.array([item.example.answer_index for item in examples], dtype=int)
    for module in scores.faulty:
        raise ConfigurationError(
            f"log-likelihoods of {module} are not finite: the training has diverged; train anew, for instance with a smaller "
            "training.learning_rate"
        )
    return scores, {module: scores.predictions(module) == answers for module in scores.choices}


@contextmanager
def modules_off(model: ICLMForCausalLM) -> Iterator[None]:
    """Make every module the untouched base model (B = 0), and put them back bitwise at the end, whatever happens."""
    parameters = [parameter for name, parameter in model.named_parameters() if ".lora_B." in name]
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)


def answered_side(
    name: str, run: Run, sources: Sequence[DataSource], limit: int | None, progress: Progress | None
) -> Side:
    rows, examples = [], []
    for source in sources:
        if limit is not None:
            source = source.model_copy(update={"limit": min(limit, source.limit or limit)})
        found = read_for(run, source)
        domains = dict(Counter(map(domain_name, found)))
        rows.append({"source": source_name(source), "domains": domains, "n": len(found)})
        examples += found
    model, pad = run.model, run.tokenizer.pad_token_id
    both = model.config.num_domains > 0 and 0 in model.config.modules
    tick = None if progress is None else progress(f"scoring {name}", 2 * len(examples))
    scores, correct = answer_with(model, examples, model.config.module_names, pad, tick, states=both)
    with modules_off(model):
        alone = model.config.module_names[-1]  # one module alone: the fewest rows
        correct["base"] = answer_with(model, examples, (alone,), pad, tick)[1][alone]
    return Side(name, rows, examples, scores, correct)
