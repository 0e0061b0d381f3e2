"""Which row of the upper layers serves which example with which module.

    sequences         b = 0 .. B-1, each with one example or several that share a prefix
    rows              one for each (sequence, module) that is needed; for one example a sequence R = B * (1 + active):

        row       0      1      2      3      4      5
        sequence  0      0      1      1      2      2
        module    inv    dom 1  inv    dom 0  inv    dom 1
        slots     example 0: rows 0, 1      example 1: rows 2, 3      example 2: rows 4, 5

An idle domain module has no row and so costs nothing, whatever K is. The plan is plain index tensors: expanding the
sequences to rows is one `index_select`, choosing the module of a row is one gate, and an example finds its rows in its
slots: the invariant module first, then its active domain modules.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

INVARIANT = 0  # the module number of the invariant module; domain i is module 1 + i


@dataclass(frozen=True)
class TokenRoute:
    """The router's decision for each token of each sequence.

    Attributes:
        indices: active domain modules, long [sequences, tokens, active].
        weights: their weights, float [sequences, tokens, active].
        owner: the sequence of each example, long [examples].
        read: which tokens the router read, bool [sequences, tokens]; the others follow the last one read.
    """

    indices: torch.Tensor
    weights: torch.Tensor
    owner: torch.Tensor
    read: torch.Tensor


@dataclass(frozen=True)
class Route:
    """The router's decision for each example.

    Attributes:
        indices: active domain modules, long [examples, active], each in 0 .. K-1, the nearest first.
        weights: their weights, float [examples, active], each row summing to 1.
        error: mean squared distance between feature and code, float [examples]; None where there is no codebook.
        loss: the router's own loss (scalar), None where there is none.
        revived: dead codes that this step replaced (scalar); None where there is no codebook.
        tokens: the decision for each token, where routing is by token; `indices` and `weights` are then those of the last
            prompt token of each example, which hold for every token after it.
    """

    indices: torch.Tensor
    weights: torch.Tensor
    error: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    revived: torch.Tensor | None = None
    tokens: TokenRoute | None = None

    @classmethod
    def to(cls, indices: torch.Tensor) -> Route:
        """The route that gives each example [examples] or [examples, active] its domains with equal weights."""
        indices = indices[:, None] if indices.dim() == 1 else indices
        weights = torch.full(indices.shape, 1.0 / indices.shape[1], device=indices.device)
        return cls(indices.long(), weights)

    def at(self, examples: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Active modules and their weights, both [n, active], at n (example, position) pairs."""
        if self.tokens is None:
            return self.indices.index_select(0, examples), self.weights.index_select(0, examples)
        sequences = self.tokens.owner.index_select(0, examples)
        return self.tokens.indices[sequences, positions], self.tokens.weights[sequences, positions]

    def select(self, examples: torch.Tensor) -> Route:
        """The routes of the examples named by index, in that order."""
        return Route(self.indices.index_select(0, examples), self.weights.index_select(0, examples))


@dataclass(frozen=True)
class ActivationPlan:
    """Rows of the upper layers; see the head of this module.

    Attributes:
        sequence: the sequence that each row continues, long [rows].
        module: the module of each row, long [rows].
        slots: the rows of each example, long [examples, width]; slot 0 is the invariant module's in a mixture.
        sequences: B, the number of sequences.
        active: the modules that any row uses, in ascending order, on the host.
    """

    sequence: torch.Tensor
    module: torch.Tensor
    slots: torch.Tensor
    sequences: int
    active: tuple[int, ...]

    @classmethod
    def regular(cls, module: torch.Tensor, active: tuple[int, ...] | None = None) -> ActivationPlan:
        """One example a sequence, with these modules [batch, width] side by side: row b * width + j."""
        batch, width = module.shape
        rows = torch.arange(batch * width, device=module.device)
        active = tuple(torch.unique(module).tolist()) if active is None else active
        return cls(rows // width, module.reshape(-1), rows.view(batch, width), batch, active)

    @classmethod
    def mixture(cls, route: Route, owner: torch.Tensor | None = None, sequences: int | None = None) -> ActivationPlan:
        """The invariant module and the routed domain modules of each example.

        Args:
            route: of each example.
            owner: the sequence of each example, long [examples]; None means one example a sequence.
            sequences: their number, needed with `owner`.
        """
        invariant = route.indices.new_full((route.indices.shape[0], 1), INVARIANT)
        module = torch.cat([invariant, 1 + route.indices], dim=1)
        if owner is None or sequences is None:
            return cls.regular(module)
        # examples of one sequence that use the same module share its row
        count = int(module.max()) + 1
        pairs, slots = torch.unique(owner[:, None] * count + module, return_inverse=True)
        return cls(pairs // count, pairs % count, slots, sequences, tuple(torch.unique(pairs % count).tolist()))

    @classmethod
    def everywhere(
        cls, modules: tuple[int, ...], sequences: int, owner: torch.Tensor | None, device: torch.device
    ) -> ActivationPlan:
        """The same modules for every sequence; an example's slot j is modules[j]."""
        plan = cls.regular(torch.tensor(modules, device=device).expand(sequences, -1), tuple(sorted(modules)))
        if owner is None:
            return plan
        return cls(plan.sequence, plan.module, plan.slots.index_select(0, owner), sequences, plan.active)

    @property
    def rows(self) -> int:
        """R, the number of rows through the upper layers."""
        return self.sequence.shape[0]

    @property
    def width(self) -> int:
        """Slots of one example."""
        return self.slots.shape[1]

    def expand(self, tensor: torch.Tensor) -> torch.Tensor:
        """Repeat a tensor [sequences, ...] for the rows: [rows, ...]."""
        return tensor.index_select(0, self.sequence)

    def select(self, examples: torch.Tensor) -> ActivationPlan:
        """The plan of the examples named by index, in that order; one example a sequence."""
        return self.regular(self.module.view(self.sequences, -1).index_select(0, examples), self.active)

    def gate(self, rank: int, scale: float, dtype: torch.dtype) -> torch.Tensor | None:
        """The gate of the module bank: float [rows, 1, active * rank], `scale` on the rank columns of a row's module.

        None if all rows use the same module: there is nothing to gate then.
        """
        if len(self.active) == 1:
            return None
        active = torch.tensor(self.active, device=self.module.device)
        one_hot = (self.module[:, None] == active).to(dtype) * scale
        return one_hot.repeat_interleave(rank, dim=1)[:, None, :]
