"""What a router may look at: the prompts of a batch, and from them the units that it decides on.

    level "input"    one unit an example: the mean of the hidden states over the prompt's tokens
    level "token"    one unit a prompt token: its own hidden state; what comes after the prompt (the answer, in training
                     as in generation) follows the last token of the prompt

Routing reads the prompt only: never the answer, never padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from iclm.model.plan import Route, TokenRoute


@dataclass(frozen=True)
class Prompt:
    """The prompts of a batch.

    Attributes:
        tokens: token ids of each sequence, long [sequences, tokens].
        mask: for each example, which tokens of its sequence belong to its prompt, bool [examples, tokens]; no padding.
        owner: the sequence of each example, long [examples].
        hidden: hidden states at the router's layer, [sequences, tokens, hidden].
        domains: true domain of each example, long [examples]; None where it is not known.
        example_at: the example that each token belongs to, long [sequences, tokens], -1 where it is several examples' or
            none's; None where each sequence is one example.
        features: pooled hidden states of each example, float32 [examples, hidden], where they were computed before;
            `hidden` is then not read.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    owner: torch.Tensor
    hidden: torch.Tensor
    domains: torch.Tensor | None = None
    example_at: torch.Tensor | None = None
    features: torch.Tensor | None = None

    @property
    def examples(self) -> int:
        """Number of examples."""
        return self.mask.shape[0]


@dataclass(frozen=True)
class Units:
    """What a router decides on: n examples or n tokens.

    Attributes:
        features: float32 [n, hidden].
        tokens, mask: the token ids that a unit consists of, long and bool [n, length].
        domains: true domain of each unit, long [n]; None where it is not known.
    """

    features: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor
    domains: torch.Tensor | None

    def __len__(self) -> int:
        return self.tokens.shape[0]


def pool(prompt: Prompt) -> torch.Tensor:
    """Mean of the hidden states over the tokens of each example's prompt, float32 [examples, hidden]."""
    mask = prompt.mask
    hidden = prompt.hidden.detach().float().index_select(0, prompt.owner).masked_fill(~mask[..., None], 0.0)
    return hidden.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def by_example(prompt: Prompt) -> Units:
    """One unit an example."""
    features = pool(prompt) if prompt.features is None else prompt.features
    return Units(features, prompt.tokens.index_select(0, prompt.owner), prompt.mask, prompt.domains)


@dataclass(frozen=True)
class TokenUnits:
    """The prompt tokens of a batch as units, and the way back.

    Attributes:
        units: one unit a token that any example reads, then one with zero features for each example without a prompt.
        prompt: where they are from.
        read: tokens that any example reads, bool [sequences, tokens].
    """

    units: Units
    prompt: Prompt
    read: torch.Tensor

    @classmethod
    def of(cls, prompt: Prompt) -> TokenUnits:
        """Gather the prompt tokens of a batch."""
        counts = torch.zeros_like(prompt.tokens).index_add_(0, prompt.owner, prompt.mask.long())
        read = counts > 0
        sequences = read.nonzero()[:, 0]
        features = prompt.hidden.detach().float()[read]
        tokens = prompt.tokens[read]
        domains = None
        if prompt.domains is not None:
            of_sequence = prompt.domains.new_full((prompt.tokens.shape[0],), -1)
            of_sequence.scatter_reduce_(0, prompt.owner, prompt.domains, "amax", include_self=False)
            domains = of_sequence[sequences]
        empty = (~prompt.mask.any(1)).nonzero()[:, 0]
        if len(empty):
            features = torch.cat([features, features.new_zeros(len(empty), features.shape[1])])
            tokens = torch.cat([tokens, tokens.new_zeros(len(empty))])
            if domains is not None and prompt.domains is not None:
                domains = torch.cat([domains, prompt.domains[empty]])
        return cls(Units(features, tokens[:, None], torch.ones_like(tokens[:, None]).bool(), domains), prompt, read)

    def spread(self, route: Route) -> Route:
        """The decisions of the units as those of all tokens of the batch."""
        prompt, known = self.prompt, int(self.read.sum())
        index = torch.arange(prompt.mask.shape[1], device=prompt.mask.device)
        last = torch.where(prompt.mask, index, -1).amax(1)  # -1 for an example without a prompt
        unit = torch.cumsum(self.read.flatten().long(), 0).view_as(self.read) - 1  # at tokens that were read
        of_example = unit[prompt.owner, last.clamp_min(0)]
        missing = last < 0
        of_example = torch.where(missing, known + torch.cumsum(missing.long(), 0) - 1, of_example)
        if prompt.example_at is None:
            after = of_example[:, None].expand_as(unit)
        else:
            first = torch.zeros(prompt.tokens.shape[0], dtype=torch.long, device=unit.device)
            first[prompt.owner.flip(0)] = torch.arange(prompt.examples, device=unit.device).flip(0)
            example = torch.where(prompt.example_at >= 0, prompt.example_at, first[:, None])
            after = of_example[example]
        unit = torch.where(self.read, unit, after)
        tokens = TokenRoute(route.indices[unit], route.weights[unit], prompt.owner, self.read)
        error = None if route.error is None else route.error[of_example]
        return Route(route.indices[of_example], route.weights[of_example], error, route.loss, route.revived, tokens)
