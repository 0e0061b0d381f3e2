"""The loss of answers, of which free ones have no choices to be right or wrong by.

    loss = - sum over answers of log p(answer, end-of-text | prompt) / number of their tokens        [nats a token]

of each module alone and of the mixture, as the training counts it (`terms["lm"]`). Its interval takes problems as independent, not
answers or tokens: the variance of a ratio estimator by linearisation (Cochran, Sampling Techniques, chapter 6), and
Student's distribution over the problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from iclm.data.collation import EncodedExample, problems_of
from iclm.evaluation.scoring import score
from iclm.model.modeling_iclm import ICLMForCausalLM


@dataclass(frozen=True)
class ModuleLoss:
    """The loss of one module on some answers.

    Attributes:
        module: its name.
        n: answers.
        tokens: of theirs, with end-of-text.
        loss: nats a token.
        low, high: ends of its 95% interval; None where there is a single problem.
    """

    module: str
    n: int
    tokens: int
    loss: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `perplexity` is exp(loss)."""
        found = {"module": self.module, "n": self.n, "tokens": self.tokens, "loss": self.loss}
        return {**found, "low": self.low, "high": self.high, "perplexity": math.exp(min(self.loss, 700.0))}


def loss_of(
    module: str, log_likelihoods: Sequence[float], tokens: Sequence[int], problems: Sequence[object]
) -> ModuleLoss:
    """Sum up the answers of one module.

    Args:
        log_likelihoods: of each answer, in nats.
        tokens: of each answer.
        problems: a key of the problem of each.
    """
    lost, counts = -np.asarray(log_likelihoods, dtype=float), np.asarray(tokens, dtype=float)
    value = float(lost.sum() / counts.sum())
    _, number = np.unique([str(key) for key in problems], return_inverse=True)
    apart = np.bincount(number, weights=lost - value * counts)  # they add up to 0
    low = high = None
    if len(apart) > 1:
        error = math.sqrt(len(apart) / (len(apart) - 1) * float((apart**2).sum())) / float(counts.sum())
        reach = float(stats.t.ppf(0.975, len(apart) - 1)) * error
        low, high = max(0.0, value - reach), value + reach
    return ModuleLoss(module, len(lost), int(counts.sum()), value, low, high)


def answer_losses(
    model: ICLMForCausalLM,
    examples: Sequence[EncodedExample],
    modules: Sequence[str],
    *,
    pad: int,
    end: int | None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[ModuleLoss], np.ndarray]:
    """The loss of each module on the answers of examples, at least one.

    Args:
        model: in any mode; it comes back in the same.
        modules: as of `iclm.evaluation.scoring.score`.
        pad, end: ids of the pad token, and of end-of-text, which ends every answer (None: nothing does).
        progress: called with the number of examples finished.

    Returns:
        A loss for each module, and the router's first choice for each example, int [n] (-1 where it was not asked).
    """
    answers = [(*item.answer, *(() if end is None else (end,))) for item in examples]
    asked = [
        replace(item, choices=(answer,), example=replace(item.example, per_token=False))
        for item, answer in zip(examples, answers, strict=True)
    ]
    was_training = model.training
    model.eval()
    try:
        # logits of the whole vocabulary are held for every token of a batch's answers, which may be long
        scores = score(model, asked, modules=modules, pad=pad, tokens_per_batch=1024, progress=progress)
    finally:
        model.train(was_training)
    problems, counts = problems_of(examples), [len(answer) for answer in answers]
    return [
        loss_of(module, [float(values[0]) for values in found], counts, problems)
        for module, found in scores.choices.items()
    ], scores.routes
