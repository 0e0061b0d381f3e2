"""Which row of the upper layers serves which example with which module.

    sequences         b = 0 .. B-1, each with one example or several that share a prefix
    rows              one for each (sequence, module) that is needed; for one example a sequence R = B * (1 + active):

        row       0      1      2      3      4      5
        sequence  0      0      1      1      2      2
        module    inv    dom 1  inv    dom 0  inv    dom 1
        slots     example 0: rows 0, 1      example 1: rows 2, 3      example 2: rows 4, 5

An idle domain module has no row and so costs nothing, whatever K is. The plan is plain index tensors: expanding the
sequences to rows is one `index_select`, choosing the modules of the rows is another, and an example finds its rows in its
slots: the invariant module first, then its active domain modules.

Where routing is by token, a domain row belongs to no single module: each of its tokens has one (`token_module`), and the
row count is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        """The routes of the examples named by index, in that order; for what follows their prompts."""
        return Route(self.indices.index_select(0, examples), self.weights.index_select(0, examples))

    def repeat(self, times: int) -> Route:
        """The same decisions with every example `times` times, the copies beside each other, each in a sequence of its own."""

        def copies(values: torch.Tensor) -> torch.Tensor:
            return values.repeat_interleave(times, dim=0)

        error = None if self.error is None else copies(self.error)
        tokens = self.tokens
        if tokens is not None:
            owner = tokens.owner[:, None] * times + torch.arange(times, device=tokens.owner.device)
            tokens = TokenRoute(copies(tokens.indices), copies(tokens.weights), owner.reshape(-1), copies(tokens.read))
        return replace(self, indices=copies(self.indices), weights=copies(self.weights), error=error, tokens=tokens)

    def dense(self, num_domains: int) -> torch.Tensor:
        """The weights of all domain modules, float [examples, K]: exactly zero for those that are not active."""
        return torch.zeros(len(self.indices), num_domains).to(self.weights).scatter(1, self.indices, self.weights)

    def extended(self, tokens: int) -> Route:
        """The same decision for sequences that have grown to so many tokens: new tokens follow their example's last."""
        known = self.tokens
        if known is None or known.read.shape[1] >= tokens:
            return self
        grown = tokens - known.read.shape[1]

        def grow(values: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
            return torch.cat([values, last[:, None].expand(-1, grown, *last.shape[1:])], dim=1)

        wider = TokenRoute(
            grow(known.indices, self.indices),
            grow(known.weights, self.weights),
            known.owner,
            grow(known.read, torch.zeros_like(known.read[:, 0])),
        )
        return replace(self, tokens=wider)


@dataclass(frozen=True)
class ActivationPlan:
    """Rows of the upper layers; see the head of this module.

    Attributes:
        sequence: the sequence that each row continues, long [rows].
        module: the module of each row, long [rows]; -1 where each token has its own.
        slots: the rows of each example, long [examples, width].
        sequences: B, the number of sequences.
        active: the modules that any row uses, in ascending order, on the host.
        fixed: the modules of the first slots, the same for every example; the slots after them hold the routed modules.
        token_module: the module of each token of each row, long [rows, tokens]; None where each row has one.
    """

    sequence: torch.Tensor
    module: torch.Tensor
    slots: torch.Tensor
    sequences: int
    active: tuple[int, ...]
    fixed: tuple[int, ...] = ()
    token_module: torch.Tensor | None = None

    @classmethod
    def regular(
        cls, module: torch.Tensor, active: tuple[int, ...] | None = None, fixed: tuple[int, ...] = ()
    ) -> ActivationPlan:
        """One example a sequence, with these modules [batch, width] side by side: row b * width + j."""
        batch, width = module.shape
        rows = torch.arange(batch * width, device=module.device)
        active = tuple(torch.unique(module).tolist()) if active is None else active
        return cls(rows // width, module.reshape(-1), rows.view(batch, width), batch, active, fixed)

    @classmethod
    def mixture(
        cls,
        route: Route,
        owner: torch.Tensor | None = None,
        sequences: int | None = None,
        fixed: tuple[int, ...] = (INVARIANT,),
    ) -> ActivationPlan:
        """The invariant module and the routed domain modules of each example.

        Args:
            route: of each example.
            owner: the sequence of each example, long [examples]; None means one example a sequence.
            sequences: their number, needed with `owner`.
            fixed: modules that every example gets besides; the invariant one, unless it is left out.
        """
        if route.tokens is not None:
            return cls._by_token(route.tokens, fixed)
        same = torch.tensor(fixed, dtype=torch.long, device=route.indices.device).expand(len(route.indices), -1)
        module = torch.cat([same, 1 + route.indices], dim=1)
        if owner is None or sequences is None:
            return cls.regular(module, fixed=fixed)
        # examples of one sequence that use the same module share its row
        count = int(module.max()) + 1
        pairs, slots = torch.unique(owner[:, None] * count + module, return_inverse=True)
        active = tuple(torch.unique(pairs % count).tolist())
        return cls(pairs // count, pairs % count, slots, sequences, active, fixed)

    @classmethod
    def _by_token(cls, tokens: TokenRoute, fixed: tuple[int, ...]) -> ActivationPlan:
        """Rows of the fixed modules, then one for each choice of the tokens; all examples of a sequence share them."""
        batch, length, active = tokens.indices.shape
        same = torch.tensor(fixed, dtype=torch.long, device=tokens.indices.device)
        of_token = torch.cat(
            [same[None, :, None].expand(batch, -1, length), 1 + tokens.indices.transpose(1, 2)], dim=1
        ).reshape(-1, length)
        module = torch.cat([same, same.new_full((active,), -1)]).expand(batch, -1)
        used = tuple(torch.unique(of_token).tolist())
        plan = cls.regular(module, used, fixed)
        return replace(plan, slots=plan.slots.index_select(0, tokens.owner), token_module=of_token)

    @classmethod
    def everywhere(
        cls,
        modules: tuple[int, ...],
        sequences: int,
        owner: torch.Tensor | None,
        device: torch.device,
        route: Route | None = None,
    ) -> ActivationPlan:
        """The same modules for every sequence; an example's slot j is modules[j].

        Args:
            route: where it is by token, its rows follow those of the modules: they are no combination of them.
        """
        if route is not None and route.tokens is not None:
            return cls._by_token(route.tokens, modules)
        plan = cls.regular(torch.tensor(modules, device=device).expand(sequences, -1), tuple(sorted(modules)), modules)
        return plan if owner is None else replace(plan, slots=plan.slots.index_select(0, owner))

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
        module = self.module.view(self.sequences, -1).index_select(0, examples)
        return self.regular(module, self.active, self.fixed)

    def position(self) -> torch.Tensor | None:
        """Where the module of each row stands in `active`, long [rows]; None where all rows use one, or each token has its own."""
        if len(self.active) == 1 or self.token_module is not None:
            return None
        return torch.searchsorted(torch.tensor(self.active, device=self.module.device), self.module)

    def gate(self, rank: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Which columns belong to a token's module: float [rows, tokens, active * rank], 1 or 0.

        None unless each token has a module of its own, and there are several.
        """
        if self.token_module is None or len(self.active) == 1:
            return None
        active = torch.tensor(self.active, device=self.module.device)
        return (self.token_module[..., None] == active).to(dtype).repeat_interleave(rank, dim=-1)
