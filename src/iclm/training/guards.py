"""What keeps earlier tasks in a module that goes on learning: a penalty on moving, or examples kept.

    EWC       loss + weight / 2 · Σ_p F_p (θ_p − θ*_p)²        F: how much earlier tasks need parameter p, θ*: where it was
    replay    some problems of each earlier task, learned again beside those of the present one

Kirkpatrick et al. 2017 (EWC), with one anchor and Fisher information summed over the tasks (online EWC, Schwarz et al. 2018);
Vitter 1985 (reservoir sampling, algorithm R).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from iclm.data.collation import Branch, Pack, collate
from iclm.errors import CheckpointError
from iclm.model import ICLMForCausalLM
from iclm.model.plan import INVARIANT
from iclm.training.stages import Stage
from iclm.training.trainer import ICLMTrainer

FISHER, ANCHOR = "fisher.", "anchor."
AGGREGATOR = "aggregator."  # of the names of its parameters


class ElasticWeights:
    """Elastic weight consolidation of some parameters.

    Args:
        weight: of the penalty beside the loss, which is a mean over tokens.
        state: what `state` gave of an earlier one; none means that no task came before.
    """

    def __init__(self, weight: float, state: Mapping[str, torch.Tensor] | None = None) -> None:
        self.weight = weight
        state = state or {}
        self.fisher = {name.removeprefix(FISHER): value for name, value in state.items() if name.startswith(FISHER)}
        self.anchor = {name.removeprefix(ANCHOR): value for name, value in state.items() if name.startswith(ANCHOR)}
        if self.fisher.keys() != self.anchor.keys():
            raise CheckpointError(
                "the Fisher information and the anchor are not of the same parameters; one is damaged"
            )

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """What goes to a file."""
        fisher = {FISHER + name: value for name, value in self.fisher.items()}
        return fisher | {ANCHOR + name: value for name, value in self.anchor.items()}

    def penalty(self, model: torch.nn.Module) -> torch.Tensor | None:
        """weight / 2 · Σ_p F_p (θ_p − θ*_p)² over the parameters that are trained; None before the first task's end."""
        terms = [
            (
                self.fisher[name].to(parameter.device) * (parameter - self.anchor[name].to(parameter.device)).square()
            ).sum()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name in self.fisher
        ]
        return self.weight / 2 * torch.stack(terms).sum() if terms else None

    def consolidate(self, model: ICLMForCausalLM, packs: Sequence[Pack], names: Iterable[str], pad: int) -> None:
        """Add a task that was learned: its Fisher information, and where the parameters are now.

        Its diagonal is empirical, with the labels as they are in the data; see `fisher_information`.

        Args:
            packs: problems of the task, with the domain of each branch the number of its module.
            names: of the parameters that are guarded.
        """
        found = fisher_information(model, packs, names, pad)
        for name, value in found.items():
            self.fisher[name] = self.fisher[name].to(value.device) + value if name in self.fisher else value
        parameters = dict(model.named_parameters())
        self.anchor = {name: parameters[name].detach().clone() for name in self.fisher}


def fisher_information(
    model: ICLMForCausalLM, packs: Sequence[Pack], names: Iterable[str], pad: int
) -> dict[str, torch.Tensor]:
    """Diagonal of the empirical Fisher information: the mean over problems of the squared gradient of a problem's loss.

    The loss is that of training without its independence term, which is no likelihood, as a sum over the problem's labelled tokens.

    Args:
        packs: the problems, at least one, with the domain of each branch the number of its module.
        names: of the parameters; all else is frozen meanwhile.

    Returns:
        A tensor of the shape of each of these parameters.
    """
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name] for name in names}
    needed = {name: parameter.requires_grad for name, parameter in parameters.items()}
    total = {name: torch.zeros_like(parameter) for name, parameter in wanted.items()}
    was_training, scale = model.training, model.mi_scale
    model.eval()
    model.mi_scale = 0.0
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in wanted)
        for pack in packs:
            batch = {name: tensor.to(model.device) for name, tensor in collate([pack], pad).items()}
            loss = model(**routed(batch)).loss * sum(branch.labelled for branch in pack.branches)
            gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
            for name, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.square() / len(packs)
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(needed[name])
        model.mi_scale = scale
        model.train(was_training)
    return total


class Reservoir:
    """At most so many problems, each that was offered with the same probability (Vitter 1985, algorithm R).

    Args:
        size: problems, at most.
        seed: of the draws.
        values: what `values` gave of an earlier one.
    """

    def __init__(self, size: int, seed: int, values: Mapping[str, Any] | None = None) -> None:
        values = values or {}
        self.size, self.seed = size, seed
        self.offered: int = values.get("offered", 0)
        self.packs = [_read_pack(entry) for entry in values.get("packs", ())]

    @property
    def values(self) -> dict[str, Any]:
        """What goes to a file, as JSON."""
        return {"offered": self.offered, "packs": [_pack_values(pack) for pack in self.packs]}

    def offer(self, packs: Iterable[Pack]) -> None:
        """Offer problems in the order in which they came."""
        for pack in packs:
            pack = Pack(pack.prefix, pack.branches)
            self.offered += 1
            if len(self.packs) < self.size:
                self.packs.append(pack)
                continue
            # a draw of its own for each problem, so that it is the same wherever the sequence was resumed
            place = random.Random(f"{self.seed}/{self.offered}").randrange(self.offered)
            if place < self.size:
                self.packs[place] = pack


def _pack_values(pack: Pack) -> dict[str, Any]:
    branches = [[list(branch.tokens), branch.labelled, branch.domain] for branch in pack.branches]
    return {"prefix": list(pack.prefix), "branches": branches}


def _read_pack(values: Mapping[str, Any]) -> Pack:
    try:
        branches = tuple(Branch(tuple(tokens), labelled, domain) for tokens, labelled, domain in values["branches"])
        return Pack(tuple(values["prefix"]), branches)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the replay buffer is damaged: {error!r}; the sequence must begin again") from error


def routed(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch whose examples go to the module of their domain number, whatever the router would say."""
    return {**batch, "route": batch["domain_ids"]} if "domain_ids" in batch else batch


@dataclass(frozen=True)
class TaskStage(Stage):
    """A task of a sequence: the mixture is trained, but only some of its modules learn.

    Attributes:
        modules: numbers in the module bank of those that learn (0 the invariant module).
        aggregator: whether the aggregator learns too, where it has something to learn.
    """

    modules: frozenset[int] = field(default_factory=frozenset)
    aggregator: bool = True

    def trains(self, name: str) -> bool:
        """Whether a parameter of this name is trained: no router is, as a route is given."""
        if ".lora_A." in name or ".lora_B." in name:
            return int(name.rpartition(".")[2]) in self.modules
        return not name.startswith("router.") and (self.aggregator or not name.startswith(AGGREGATOR))


class TaskTrainer(ICLMTrainer):
    """Trains a task of a sequence: each example goes to the module of its domain number, and the router stays as it is.

    Args:
        elastic: a penalty on moving what earlier tasks need; None means none.
        args, kwargs: as for `ICLMTrainer`.
    """

    def __init__(self, *args: Any, elastic: ElasticWeights | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.elastic = elastic

    @staticmethod
    def _new_watch(model: ICLMForCausalLM) -> None:
        """One module for all examples is what is meant here."""
        return None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the task, and in training the penalty beside it."""
        found = super().compute_loss(model, routed(inputs), return_outputs, num_items_in_batch)
        penalty = None if self.elastic is None or not self.model.training else self.elastic.penalty(self.model)
        if penalty is None:
            return found
        penalty = penalty / self.current_gradient_accumulation_steps  # each batch has its share of the step
        self._terms["elastic"].append(penalty.detach())
        return (found[0] + penalty, found[1]) if return_outputs else found + penalty


def guarded_names(model: ICLMForCausalLM) -> list[str]:
    """Names of the parameters that go on learning from task to task: the invariant module's, and the aggregator's."""
    shared = (name for name, parameter in model.named_parameters() if name.startswith(AGGREGATOR))
    return [*adapter_names(model, INVARIANT), *shared]


def adapter_names(model: ICLMForCausalLM, module: int) -> Iterator[str]:
    """Names of the parameters of a module by its number in the bank."""
    ends = (f".lora_A.{module}", f".lora_B.{module}")
    return (name for name, _ in model.named_parameters() if name.endswith(ends))
