"""The five terms of the loss, at the labelled tokens only.

    loss = LM(mixture) + w_router router + w_mi MI + w_inv LM(invariant) + w_dom LM(domain)  ( + critic )

LM is the mean negative log-likelihood of the labelled tokens; under gradient accumulation every term is the batch's share
of the accumulated step, so that accumulation changes nothing of the LM terms while the routes stay. How a step is cut into batches does
change what is estimated from a batch: MI and its critic, the load balance of a gate, the codes of router vq, which move with every
batch; and the router's and the MI term are weighted by a batch's share of the labelled tokens, not of its examples. The critic's term is
there where the estimate of MI has parameters of its own; it moves nothing else, and is there in training only. Gendron et al. 2024,
section 3.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from iclm.model.aggregator import weigh
from iclm.model.outputs import Encoded
from iclm.model.packing import Packing

if TYPE_CHECKING:
    from iclm.model.modeling_iclm import ICLMForCausalLM

IGNORED = -100  # label of a token that nothing is to be learned from
CRITIC_SCALE = (
    0.01  # Adam does not see it, but clipping by the norm of all gradients would let critics shrink the others
)


def five_term_loss(
    model: ICLMForCausalLM,
    encoded: Encoded,
    labels: torch.Tensor,
    packing: Packing | None = None,
    items: torch.Tensor | int | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch and its unweighted terms.

    Args:
        labels: [batch, tokens], -100 where nothing is to be learned.
        packing: where several examples share a sequence.
        items: labelled tokens over all batches of an accumulated step; None means those of this batch.

    Returns:
        The weighted sum, and the detached terms by name; a term whose weight is zero is not computed.
    """
    config = model.config
    sequences, tokens = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    targets = labels[sequences, tokens + 1]
    if packing is None:
        examples, positions = sequences, tokens
    else:
        examples = packing.example_at()[sequences, tokens + 1]
        positions = packing.predecessors[sequences, tokens + 1]
    count = max(len(targets), 1) if items is None else items
    states = encoded.at(examples, positions)

    def nll(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), targets, reduction="sum") / count

    terms = {"lm": nll(model.logits(encoded, states, examples, positions))}
    loss = terms["lm"]
    if encoded.route is not None:
        share = len(targets) / count
        invariant, domains, weights = encoded.sides(states, examples, positions)
        if invariant is not None and model.independence is not None:
            domain = weigh(domains, weights)
            if config.invariant_weight:
                terms["invariant"] = nll(model.head(invariant))
                loss = loss + config.invariant_weight * terms["invariant"]
            if config.domain_weight:
                terms["domain"] = nll(model.head(domain))
                loss = loss + config.domain_weight * terms["domain"]
            if config.mi_weight:
                found = model.independence(invariant, domain)
                terms["mi"] = share * found.value
                loss = loss + config.mi_weight * model.mi_scale * terms["mi"]
                if found.critic is not None and model.training:
                    terms["critic"] = share * found.critic
                    loss = loss + CRITIC_SCALE * terms["critic"]
        if config.router_weight and encoded.route.loss is not None:
            terms["router"] = share * encoded.route.loss
            loss = loss + config.router_weight * terms["router"]
    return loss, {name: term.detach() for name, term in terms.items()}


def before_labels(
    labels: torch.Tensor, branch_ids: torch.Tensor | None = None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The tokens of each example before its first label, bool [batch, tokens]: its prompt.

    Args:
        branch_ids: where several examples share a sequence.
        mask: the real tokens; None means all. An example (of its own sequence) none of which come before its first label is
            read whole, as plain text whose labels are its tokens; on a CPU a warning says so.
    """
    labelled = labels != IGNORED
    if branch_ids is None:
        prompt = labelled.long().cumsum(-1) == 0
        without = ~(prompt if mask is None else prompt & (mask != 0)).any(-1)
        if labels.device.type == "cpu" and bool(
            without.any()
        ):  # elsewhere the question would wait for the device in every step
            warnings.warn(
                "labels begin at the first token of an example, so that it has no prompt, and the router reads it whole; label the "
                "prompt with -100, or pass prompt_mask",
                stacklevel=2,
            )
        return prompt | without[:, None]
    prompt = ~labelled
    for number in range(1, int(branch_ids.max()) + 1):
        own = branch_ids == number
        prompt &= ~own | ((labelled & own).long().cumsum(-1) == 0)
    return prompt
