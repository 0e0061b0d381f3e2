"""Scaled dot-product attention whose backward pass is fast in bfloat16 on a CPU.

PyTorch's flash kernel for CPUs (2.13) spends six times its forward pass on the backward pass of short bfloat16 sequences, which
was a quarter of a training step. Here the forward pass is that kernel, so that every result stays the same; the backward pass
recomputes the probabilities and is made of matrix products. With s the scale, O the output and G its gradient,

    P = softmax(s Q Kᵀ + mask)      dV = Pᵀ G      dS = P ∘ (G Vᵀ − rowsum(G ∘ O))      dQ = s dS K      dK = s dSᵀ Q

(Dao et al. 2022, FlashAttention, appendix B.2). It is done a few rows at a time, so that memory stays small. Everything else
(other devices and dtypes, long sequences, no gradient, dropout) is left to transformers' own function.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "iclm_sdpa"
LONGEST = 512  # tokens, above which the kernel's own backward pass is as fast
BLOCK = 1_000_000  # probabilities that are held at a time, about


class _Attention(torch.autograd.Function):
    """softmax(s Q Kᵀ + mask) V with queries [rows, H, tokens, D], keys and values [rows, H', tokens, D], H' dividing H."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """Run the kernel.

        Args:
            mask: bool [1 or rows, 1, tokens, tokens], true where a query sees a key; None means all keys up to its own.
        """
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        ctx.save_for_backward(q, k, v, out, mask)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Gradients of q, k and v."""
        q, k, v, out, mask = ctx.saved_tensors
        return *attention_gradients(q, k, v, out, mask, grad, ctx.scale), None, None


@torch.library.custom_op("iclm::attention_gradients", mutates_args=())
def attention_gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    mask: torch.Tensor | None,
    grad: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values; one operation to `torch.compile`.

    Args:
        q, k, v, mask, scale: see `_Attention`.
        out, grad: the result [rows, H, tokens, D] and its gradient.
    """
    rows, heads, tokens, dim = q.shape
    groups, keys = k.shape[1], k.shape[2]
    if mask is None:
        mask = torch.ones(tokens, keys, dtype=torch.bool, device=q.device).tril()[None, None]
    hidden = ~mask[:, :, None]
    blind = hidden.all(-1, keepdim=True)  # a query that sees nothing (padding) gives zero and has no gradient
    padded = bool(blind.any())
    of_q, of_k, of_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    size = max(1, BLOCK // (heads * tokens * keys))
    for start in range(0, rows, size):
        part = slice(start, start + size)
        shared = slice(None) if len(hidden) == 1 else part
        count = len(q[part])
        # the query heads of a key head stand one below the other, so that keys are not repeated
        stacked = (count, groups, heads // groups * tokens, dim)
        scaled = (q[part] * scale).reshape(stacked)
        g = grad[part].reshape(stacked)
        p = scaled @ k[part].transpose(2, 3)
        by_head = p.view(count, groups, heads // groups, tokens, keys)
        by_head.masked_fill_(hidden[shared], float("-inf"))
        p = torch.softmax(p, -1)
        if padded:
            p.view(by_head.shape).masked_fill_(blind[shared], 0)
        of_v[part] = p.transpose(2, 3) @ g
        delta = (g * out[part].reshape(stacked)).sum(-1, keepdim=True, dtype=torch.float32).to(g.dtype)
        ds = (g @ v[part].transpose(2, 3)).sub_(delta).mul_(p)
        of_q[part] = (ds @ k[part]).mul_(scale).view(count, heads, tokens, dim)
        of_k[part] = ds.transpose(2, 3) @ scaled
    return of_q, of_k, of_v


@attention_gradients.register_fake
def _shapes(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    mask: torch.Tensor | None,
    grad: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    return found[0], found[1], found[2]


def _is_slow(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float, rest: dict[str, Any]
) -> bool:
    """Whether the kernel's backward pass would be needed and is slow, on arguments that ours understands."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[2] > LONGEST or q.shape[2] != k.shape[2]:
        return False
    if not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)) or dropout:
        return False
    if any(rest.get(name) is not None for name in ("softcap", "position_bias", "cache", "s_aux")):
        return False
    if v.shape != k.shape or k.shape[-1] != q.shape[-1]:  # values of another size than keys
        return False
    return mask is None or (mask.dtype == torch.bool and mask.shape[1:] == (1, q.shape[2], k.shape[2]))


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa" attention; arguments and result [rows, tokens, heads, dim] are those of its attention interface."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if (attention_mask is None and not causal) or not _is_slow(query, key, value, attention_mask, dropout, kwargs):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = _Attention.apply(query, key, value, attention_mask, scale)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_fast_attention(base: PreTrainedModel) -> None:
    """Let a base that uses transformers' "sdpa" attention use this one; any other choice is left alone."""
    if base.config._attn_implementation == "sdpa" and base._can_set_attn_implementation():
        base.set_attn_implementation(NAME)


def use_sdpa(base: PreTrainedModel) -> None:
    """Undo `use_fast_attention`."""
    if base.config._attn_implementation == NAME:
        base.set_attn_implementation("sdpa")
