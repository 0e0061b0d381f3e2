"""A fresh ICLM compared with its base once, when it is made, so that a base of an unknown kind is found before it is trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from iclm.errors import BackboneError, ICLMError, first_line
from iclm.model.attention import use_sdpa
from iclm.model.backbone import anatomy
from iclm.model.modules import release

if TYPE_CHECKING:
    from iclm.model.modeling_iclm import ICLMForCausalLM

TOKENS = 6  # of each of the two sequences
FAR, FAR_ROUNDED = (
    0.01,
    0.3,
)  # share of the spread of the logits: in float32, and in 16 bits or fewer, where experts may change
LEAST = 1e-4  # for a base whose logits are all alike


def check_fresh(model: ICLMForCausalLM) -> ICLMForCausalLM:
    """The model, if it gives the base's own next-token distributions of two sequences, one of them padded.

    Raises:
        BackboneError: it does not, or the base cannot be run in rows. The base is then as it was before.
    """
    training = model.training
    try:
        _compare(model.eval())
    except BaseException:
        release(model.base)
        use_sdpa(model.base)
        raise
    model.train(training)
    return model


@torch.no_grad()
def _compare(model: ICLMForCausalLM) -> None:
    base, name = model.base, type(model.base).__name__
    tokens = torch.arange(2 * TOKENS, device=model.device).remainder(anatomy(base).vocab_size).view(2, TOKENS)
    mask = torch.ones_like(tokens)
    mask[1, TOKENS // 2 :] = 0  # on the right: on the left some bases count positions from the padding
    route = None if model.router is None else tokens.new_zeros(2)
    try:
        own = base(input_ids=tokens, attention_mask=mask, use_cache=False).logits.float()[mask.bool()]
        ours = model(input_ids=tokens, attention_mask=mask, route=route, use_cache=False).logits.float()[mask.bool()]
    except (ICLMError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = first_line(error)
        use_sdpa(base)  # by whose name it is known
        how = f"{name} with attn_implementation={base.config._attn_implementation!r}"
        raise BackboneError(f"{how} cannot be run as an ICLM runs its base, in rows of layers: {reason}") from error
    if not bool(own.isfinite().all()):
        raise BackboneError(f"{name} gives logits that are not finite in {base.dtype}; load it in another dtype")
    exact = base.dtype in (torch.float32, torch.float64) and model.config.base["quantization"] == "none"
    # distributions, as some aggregators give them without their constant
    difference = (own.log_softmax(-1) - ours.log_softmax(-1)).square().mean().sqrt()
    if not difference <= (FAR if exact else FAR_ROUNDED) * own.std() + LEAST:  # not a number is no match
        raise BackboneError(
            f"{name} gives other logits as an ICLM runs it, in rows of layers, than on its own; ICLM does not know its architecture"
        )
