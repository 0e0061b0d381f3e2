"""Is what a fresh ICLM computes what its base computes? Asked once, when it is made: a base of an unknown kind is found then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from iclm.errors import BackboneError, ICLMError
from iclm.model.backbone import anatomy

if TYPE_CHECKING:
    from iclm.model.modeling_iclm import ICLMForCausalLM

TOKENS = 6
FAR = 0.3  # of the spread of the logits; rounding in bfloat16 makes a tenth of it at most
ROUNDED = 1e-3


@torch.no_grad()
def check_fresh(model: ICLMForCausalLM) -> ICLMForCausalLM:
    """The model, if it gives the base's own next-token distributions of two sequences, one of them padded.

    Raises:
        BackboneError: it does not, or the base cannot be run in rows.
    """
    tokens = torch.arange(2 * TOKENS, device=model.device).remainder(anatomy(model.base).vocab_size).view(2, TOKENS)
    mask = torch.ones_like(tokens)
    mask[1, TOKENS // 2 :] = 0  # on the right: on the left some bases count positions from the padding
    name = type(model.base).__name__
    route = None if model.router is None else tokens.new_zeros(2)
    training = model.training
    try:
        own = model.base(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        ours = model.eval()(input_ids=tokens, attention_mask=mask, route=route, use_cache=False).logits
    except ICLMError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"{name} cannot be run as an ICLM runs its base, in rows of layers: {reason}") from error
    finally:
        model.train(training)
    real = mask.bool()
    wanted, found = own.float()[real], ours.float()[real]
    # distributions, as some aggregators give them without their constant
    difference = (wanted.log_softmax(-1) - found.log_softmax(-1)).square().mean().sqrt()
    if not difference <= FAR * wanted.std() + ROUNDED:  # not a number is no match
        raise BackboneError(
            f"{name} gives other logits as an ICLM runs it, in rows of layers, than on its own; ICLM does not know its architecture"
        )
    return model
