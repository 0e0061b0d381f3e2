"""Interventions on modules: a causal mechanism is one that can be changed alone; this table is the test of it.

    swap       module j in the place of the router's choice i, all else held      accuracy[i][j]
    change     one module off, or noise on its weights, all else held             moved[m][j]

The swap asks what a route is worth: where the modules have specialised, accuracy falls off the diagonal; where they are
alike, the columns are equal. The change asks whether the modules are autonomous: with l_j(x, c) the log-likelihood in
nats that module j gives to choice c of example x, and l'_j the same under an intervention on module m,

    moved[m][j] = mean over all x and c of | l'_j(x, c) - l_j(x, c) |

must be exactly 0 for every j other than m, and the router must send every example where it did before.

Source: the principle of independent causal mechanisms in Peters, Janzing and Schölkopf, Elements of Causal Inference,
2017, chapter 2, on the modules of Gendron et al., arXiv 2402.02636.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from iclm.data.collation import EncodedExample, problems_of
from iclm.errors import ConfigurationError, DataError
from iclm.evaluation.comparison import paired_difference
from iclm.evaluation.metrics import Accuracy
from iclm.evaluation.scoring import Scores, score
from iclm.model.modeling_iclm import ICLMForCausalLM

KINDS = ("off", "noise")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class SwapRow:
    """Some examples, answered with each domain module in turn.

    Attributes:
        source: the module that the router sends them to, or their true domain.
        mixture: accuracy with the router's own choice.
        accuracy: accuracy with domain module j in its place, [K].
    """

    source: str
    mixture: Accuracy
    accuracy: tuple[Accuracy, ...]

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.mixture.n

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        values = [accuracy.to_dict() for accuracy in self.accuracy]
        return {"source": self.source, "n": self.n, "mixture": self.mixture.to_dict(), "accuracy": values}


@dataclass(frozen=True)
class SwapMatrix:
    """Accuracy of the mixture with module j put in the place of another.

    Attributes:
        routed: K rows: row i has the examples whose first choice of the router is module i (where routing is by token, that
            of the last prompt token). With one active module and one route an example its diagonal is the mixture itself.
        by_domain: a row for each true domain that is known.
        advantage: accuracy with the router's own module less the mean over the others, of the same questions, with its 95%
            interval over problems; None where there is no other module.
    """

    routed: tuple[SwapRow, ...]
    by_domain: tuple[SwapRow, ...]
    advantage: tuple[float, float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "modules": [row.source for row in self.routed],
            "routed": [row.to_dict() for row in self.routed],
            "by_domain": [row.to_dict() for row in self.by_domain],
            "advantage": None
            if self.advantage is None
            else dict(zip(("value", "low", "high"), self.advantage, strict=True)),
        }


@dataclass(frozen=True)
class ModuleEffect:
    """What changing one module did.

    Attributes:
        module: the module that was changed.
        kind: "off" or "noise".
        accuracy: under the intervention, of the mixture and of every module.
        moved: mean absolute change of the choices' log-likelihoods in nats, of the mixture and of every module.
        routes_changed: number of examples whose first choice of the router changed.
    """

    module: str
    kind: str
    accuracy: dict[str, Accuracy]
    moved: dict[str, float]
    routes_changed: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "module": self.module,
            "kind": self.kind,
            "accuracy": {name: accuracy.to_dict() for name, accuracy in self.accuracy.items()},
            "moved": dict(self.moved),
            "routes_changed": self.routes_changed,
        }


@dataclass(frozen=True)
class ModuleEffects:
    """What changing each module alone did to it and to the others.

    Attributes:
        modules: the modules, in the order of the matrices.
        before: accuracy of the mixture and of every module before any intervention.
        effects: one for each kind and module.
        scale, seed: of the noise.
    """

    modules: tuple[str, ...]
    before: dict[str, Accuracy]
    effects: tuple[ModuleEffect, ...]
    scale: float
    seed: int

    def moved(self, kind: str) -> list[list[float]]:
        """The matrix moved[m][j] in nats, [M, M], of interventions of one kind."""
        return [[effect.moved[name] for name in self.modules] for effect in self.effects if effect.kind == kind]

    @property
    def isolated(self) -> bool:
        """Whether every move off the diagonal is exactly 0; the diagonal tells whether there was a change to feel."""
        return not any(effect.moved[name] for effect in self.effects for name in self.modules if name != effect.module)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `moved` holds the matrix of each kind."""
        kinds = dict.fromkeys(effect.kind for effect in self.effects)
        return {
            "modules": list(self.modules),
            "before": {name: accuracy.to_dict() for name, accuracy in self.before.items()},
            "moved": {kind: self.moved(kind) for kind in kinds},
            "routes_changed": sum(effect.routes_changed for effect in self.effects),
            "effects": [effect.to_dict() for effect in self.effects],
            "scale": self.scale,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class InterventionReport:
    """Both tables of one model on one set of examples.

    Attributes:
        swap: see `swap_matrix`.
        effects: see `module_effects`.
    """

    swap: SwapMatrix
    effects: ModuleEffects

    @property
    def isolated(self) -> bool:
        """Whether no module moved when another was changed."""
        return self.effects.isolated

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"isolated": self.isolated, "swap": self.swap.to_dict(), "effects": self.effects.to_dict()}


@contextmanager
def perturbed(
    model: ICLMForCausalLM, module_number: int, kind: str, *, scale: float = 1.0, seed: int = 0
) -> Iterator[None]:
    """Change the weights of one module, and put them back bitwise at the end, whatever happens.

    Args:
        module_number: 0 for the invariant module, 1 + i for domain module i.
        kind: "off" sets its B to zero, so that the module is the base model; "noise" adds to each of its A and B Gaussian
            noise of `scale` times the standard deviation of that tensor's entries.
        scale: of the noise, at least 0. An untrained B is all zeros and gets no noise.
        seed: of the noise; one seed draws the same for every module.

    Raises:
        ConfigurationError: a model without domain modules, a module that it lacks, an unknown kind, a bad scale.
    """
    _require_domain_modules(model)
    if module_number not in model.config.modules:
        raise ConfigurationError(
            f"module number {module_number} is unknown; the model has {', '.join(map(str, model.config.modules))}"
        )
    _check_noise((kind,), scale)
    ends = (f"lora_A.{module_number}", f"lora_B.{module_number}")
    # a tensor that two modules share is listed once by default, under the name of the first
    named = model.named_parameters(remove_duplicate=False)
    parameters = {name: parameter for name, parameter in named if name.endswith(ends)}
    # an intervention that touches nothing would look like perfect isolation
    assert parameters, f"no parameter of the model has a name that ends in {' or '.join(ends)}"
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            for name, parameter in parameters.items():
                if kind == "noise":
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                    parameter.add_(noise * (scale * parameter.std(correction=0)))
                elif name.endswith(ends[1]):
                    parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])


def swap_matrix(
    model: ICLMForCausalLM, examples: Sequence[EncodedExample], *, pad: int, progress: Progress | None = None
) -> SwapMatrix:
    """Accuracy with each domain module in the place of the router's choice; one scoring pass, a row for each module.

    Args:
        examples: at least one, each with choices. The true domain is its name, or where it has none its number.
        pad: id of the pad token.
        progress: called with the number of examples finished; they sum to the number of examples.

    Raises:
        ConfigurationError: a model without domain modules, or whose scores are not finite.
        DataError: no example, or one without choices.
    """
    _require_domain_modules(model)
    names = ("mixture", *(f"route_{j}" for j in range(model.config.num_domains)))
    return _swap(_score(model, examples, names, pad, progress), examples, model.config.num_domains)


def module_effects(
    model: ICLMForCausalLM,
    examples: Sequence[EncodedExample],
    *,
    pad: int,
    kinds: Sequence[str] = KINDS,
    scale: float = 1.0,
    seed: int = 0,
    before: Scores | None = None,
    progress: Progress | None = None,
) -> ModuleEffects:
    """Change each module alone, and score the mixture and every module; 1 + len(kinds) * M passes, each with all rows.

    Args:
        examples: at least one, each with choices.
        pad: id of the pad token.
        kinds, scale, seed: see `perturbed`.
        before: scores of the mixture and of every module on these examples (`score` as it is by default), where they are
            at hand; saves the first pass.
        progress: called with the number of examples finished; they sum to examples times passes.

    Raises:
        ConfigurationError: a model without domain modules, an unknown kind, a bad scale, or scores that are not finite.
        DataError: no example, or one without choices.
    """
    _require_domain_modules(model)
    _check_noise(kinds, scale)
    names = tuple(model.config.module_names)
    if before is None:
        before = _score(model, examples, names, pad, progress)
    modules = tuple(name for name in names if name != "mixture")
    groups = problems_of(examples)
    effects = []
    for kind in dict.fromkeys(kinds):
        for number, module in zip(model.config.modules, modules, strict=True):
            with perturbed(model, number, kind, scale=scale, seed=seed):
                after = _score(model, examples, names, pad, progress, f"under {kind} of {module}")
            effects.append(
                ModuleEffect(
                    module,
                    kind,
                    {name: Accuracy.of(_right(after, name, examples).tolist(), groups) for name in names},
                    {name: _moved(before, after, name) for name in names},
                    int((before.routes != after.routes).sum()),
                )
            )
    first = {name: Accuracy.of(_right(before, name, examples).tolist(), groups) for name in names}
    return ModuleEffects(modules, first, tuple(effects), scale, seed)


def interventions(
    model: ICLMForCausalLM,
    examples: Sequence[EncodedExample],
    *,
    pad: int,
    kinds: Sequence[str] = KINDS,
    scale: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> InterventionReport:
    """Both tables, the swap and the state before any change from one pass; arguments and errors as `module_effects`."""
    _require_domain_modules(model)
    _check_noise(kinds, scale)
    routes = [f"route_{j}" for j in range(model.config.num_domains)]
    before = _score(model, examples, (*model.config.module_names, *routes), pad, progress)
    swap = _swap(before, examples, model.config.num_domains)
    effects = module_effects(
        model, examples, pad=pad, kinds=kinds, scale=scale, seed=seed, before=before, progress=progress
    )
    return InterventionReport(swap, effects)


def _require_domain_modules(model: ICLMForCausalLM) -> None:
    if model.config.num_domains == 0:
        raise ConfigurationError("interventions need domain modules; this model has none (plain LoRA, or an ablation)")


def _check_noise(kinds: Sequence[str], scale: float) -> None:
    if not kinds:
        raise ConfigurationError(f"kinds of intervention is empty; use {' or '.join(KINDS)}, or both")
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigurationError(f"kind {kind!r} of intervention is unknown; use {' or '.join(KINDS)}")
    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigurationError(f"scale of the noise is {scale}; it must be a finite number of at least 0, such as 1")


def _score(
    model: ICLMForCausalLM,
    examples: Sequence[EncodedExample],
    modules: tuple[str, ...],
    pad: int,
    progress: Progress | None,
    change: str = "before any intervention",
) -> Scores:
    """Scores in evaluation mode, all of them finite; `change` says under which intervention, for the message."""
    if not examples:
        raise DataError("interventions were given no examples; at least one with choices is needed")
    was_training = model.training
    model.eval()
    try:
        scores = score(model, examples, modules=modules, pad=pad, progress=progress)
    finally:
        model.train(was_training)
    for module in scores.faulty:
        raise ConfigurationError(
            f"log-likelihoods of {module} are not finite {change}; the model has diverged, or the noise is too large"
        )
    return scores


def _right(scores: Scores, module: str, examples: Sequence[EncodedExample]) -> np.ndarray:
    """Whether a module answers each example right, bool [n]."""
    return scores.predictions(module) == np.array([item.example.answer_index for item in examples])


def _swap(scores: Scores, examples: Sequence[EncodedExample], num_domains: int) -> SwapMatrix:
    mixture = _right(scores, "mixture", examples)
    columns = np.stack([_right(scores, f"route_{j}", examples) for j in range(num_domains)])
    groups = problems_of(examples)

    def row(source: str, chosen: np.ndarray) -> SwapRow:
        of = [groups[number] for number in np.flatnonzero(chosen)]
        found = [Accuracy.of(right[chosen].tolist(), of) for right in (mixture, *columns)]
        return SwapRow(source, found[0], tuple(found[1:]))

    advantage = None
    if num_domains > 1:
        own = columns[scores.routes, np.arange(len(examples))].astype(float)
        advantage = paired_difference(own, (columns.sum(0) - own) / (num_domains - 1), groups)
    domains = np.array([_domain_of(item) for item in examples])
    return SwapMatrix(
        tuple(row(f"domain_{i}", scores.routes == i) for i in range(num_domains)),
        tuple(row(domain, domains == domain) for domain in sorted(set(domains.tolist())) if domain),
        advantage,
    )


def _domain_of(item: EncodedExample) -> str:
    """Name of an example's true domain, else its number; empty where it is not known."""
    return item.example.domain or (str(item.domain) if item.domain >= 0 else "")


def _moved(before: Scores, after: Scores, module: str) -> float:
    """Mean absolute change of the log-likelihoods of all choices under one module, in nats."""
    change = np.concatenate(after.choices[module]) - np.concatenate(before.choices[module])
    return float(np.abs(change).mean())
