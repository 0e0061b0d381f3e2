"""Several examples in one sequence: they share a prefix, which is computed once, and continue as branches.

    tokens     p p p p p | a a a | b b | c c c c | pad
    branch     0 0 0 0 0 | 1 1 1 | 2 2 | 3 3 3 3 | -1
    position   0 1 2 3 4 | 5 6 7 | 5 6 | 5 6 7 8

A token sees the prefix and the earlier tokens of its own branch; positions restart after the prefix. Each branch thus
computes exactly what it would compute in a sequence of its own. That needs a base whose layers see tokens through the attention mask
and place them by their position alone (`packing_obstacle`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from iclm.errors import ConfigurationError
from iclm.model.attention import NAME

PREFIX, PADDING = 0, -1
KINDS = {"full_attention", "sliding_attention"}  # of layers that a mask of ours is made for


def packing_obstacle(base: PreTrainedModel) -> str | None:
    """Why branches of one sequence would not be alone with their prefix in a base, before it is adapted; None if they are."""
    config = base.config.get_text_config(decoder=True)
    other = sorted(set(getattr(config, "layer_types", None) or ()) - KINDS)
    if other:
        return f"it has layers of {', '.join(other)}"
    if getattr(base, "_is_stateful", False) or any(isinstance(module, nn.Conv1d) for module in base.modules()):
        return "it has recurrent or convolutional layers"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "its local attention goes by the place in the sequence"
    if getattr(config, "alibi", False) or config.model_type == "mpt":
        return "its attention is biased by the place in the sequence (ALiBi)"
    return None


@dataclass(frozen=True)
class Packing:
    """Which token belongs to which example.

    Attributes:
        branch: long [batch, tokens]: 0 in the prefix, 1, 2, ... in the branches, -1 at padding.
        owner: the sequence of each example, long [examples].
        number: the branch number of each example in its sequence, long [examples].
    """

    branch: torch.Tensor
    owner: torch.Tensor
    number: torch.Tensor

    @classmethod
    def of(cls, branch: torch.Tensor) -> Packing:
        """Number the branches of all sequences, in order, as the examples."""
        most = int(branch.max())
        present = torch.stack([(branch == number).any(1) for number in range(1, most + 1)], dim=1)
        owner, number = present.nonzero(as_tuple=True)
        return cls(branch, owner, number + 1)

    @property
    def positions(self) -> torch.Tensor:
        """Position of each token in its own example, long [batch, tokens]; 0 at padding."""
        positions = torch.zeros_like(self.branch)
        prefix = self.branch == PREFIX
        length = prefix.sum(1, keepdim=True)
        positions = torch.where(prefix, prefix.cumsum(1) - 1, positions)
        for number in range(1, int(self.branch.max()) + 1):
            own = self.branch == number
            positions = torch.where(own, length + own.cumsum(1) - 1, positions)
        return positions

    @property
    def predecessors(self) -> torch.Tensor:
        """Index of the token before each token in its own example, long [batch, tokens]; its own index at the first."""
        index = torch.arange(self.branch.shape[1], device=self.branch.device).expand_as(self.branch)
        before = self.branch.roll(1, dims=1)
        last = ((self.branch == PREFIX).sum(1, keepdim=True) - 1).clamp_min(0).expand_as(index)
        starts = (self.branch > 0) & (before != self.branch)
        return torch.where(starts, last, (index - 1).clamp_min(0))

    def readable(self, prompt_mask: torch.Tensor) -> torch.Tensor:
        """Prompt tokens of each example, bool [examples, tokens]: those of the prefix and of its own branch."""
        branch = self.branch.index_select(0, self.owner)
        own = (branch == PREFIX) | (branch == self.number[:, None])
        return own & prompt_mask.index_select(0, self.owner)

    def example_at(self) -> torch.Tensor:
        """The example that each token belongs to, long [batch, tokens]; -1 in the prefix and at padding."""
        numbers = torch.full((self.branch.shape[0], int(self.branch.max()) + 1), -1, device=self.branch.device)
        numbers[self.owner, self.number] = torch.arange(len(self.owner), device=self.branch.device)
        return torch.where(self.branch > 0, numbers.gather(1, self.branch.clamp_min(0)), -1)

    def attention(self, config: PreTrainedConfig, dtype: torch.dtype) -> torch.Tensor | dict[str, torch.Tensor]:
        """The attention mask [batch, 1, tokens, tokens] that the base takes instead of a padding mask.

        Args:
            config: of the base; a base with sliding-window layers gets a mask for each kind of layer.
            dtype: of the base's activations, for attention written out in full ("eager").

        Raises:
            ConfigurationError: the base's attention implementation takes no such mask.
        """
        implementation = getattr(config, "_attn_implementation", None) or "sdpa"
        if implementation not in ("sdpa", "eager", NAME):
            raise ConfigurationError(f"packing needs attention 'sdpa' or 'eager'; the base uses {implementation!r}")
        branch, tokens = self.branch, self.branch.shape[1]
        earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=branch.device).tril()
        keys, queries = branch[:, None, :], branch[:, :, None]
        seen = earlier & ((keys == PREFIX) | (keys == queries)) & (keys != PADDING)
        seen = seen | torch.eye(tokens, dtype=torch.bool, device=branch.device)  # padding sees itself: no empty row
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if window is None or (kinds is not None and "sliding_attention" not in kinds):
            return _as_mask(seen, implementation, dtype)
        positions = self.positions
        near = positions[:, :, None] - positions[:, None, :] < window
        if kinds is None:
            return _as_mask(seen & near, implementation, dtype)
        return {
            "full_attention": _as_mask(seen, implementation, dtype),
            "sliding_attention": _as_mask(seen & near, implementation, dtype),
        }


def _as_mask(seen: torch.Tensor, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    seen = seen[:, None]
    if implementation != "eager":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
