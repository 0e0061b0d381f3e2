"""Examples a second of choice scoring, beside scoring every (prompt, choice) pair as a sequence of its own.

Both score the same ACRE questions with the same ICLM, in batches of as many tokens, logits at the choice's tokens only. What
differs is sharing: the queries of a problem share their trials, and the choices of a question their prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from iclm.data.collation import EncodedExample, encode
from iclm.data.loading import read_sources
from iclm.errors import ConfigurationError
from iclm.evaluation.scoring import score
from iclm.model import ICLMForCausalLM, load_tokenizer
from iclm.recipe import DataSource
from iclm.studies.bench import contestants as of
from iclm.studies.bench.contestants import Workload
from iclm.studies.bench.step import HALF, check
from iclm.studies.bench.timing import Comparison, compare, take_turns

TOKENS = 4096  # of a batch
FORMATS = ("symbolic", "text")


def asked(problems: int) -> dict[str, Any]:
    """What is scored, for a record: so many ACRE problems a format, four questions each."""
    return {
        "problems": problems,
        "formats": list(FORMATS),
        "questions": 4 * problems * len(FORMATS),
        "tokens_per_batch": TOKENS,
    }


@torch.inference_mode()
def score_pairs(
    model: ICLMForCausalLM, examples: Sequence[EncodedExample], pad: int, tokens_per_batch: int = TOKENS
) -> list[np.ndarray]:
    """Log-likelihood of each choice of each example in nats, every (prompt, choice) pair read on its own."""
    pairs = [(i, c) for i, item in enumerate(examples) for c in range(len(item.choices))]
    sequences = [examples[i].prompt + examples[i].choices[c] for i, c in pairs]
    found = [np.zeros(len(item.choices)) for item in examples]
    order = sorted(range(len(pairs)), key=lambda number: len(sequences[number]))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(sequences[order[end]]) <= tokens_per_batch:
            end += 1
        chosen = order[start:end]
        width = max(len(sequences[number]) for number in chosen)
        ids = torch.full((len(chosen), width), pad)
        mask, prompt = torch.zeros_like(ids), torch.zeros_like(ids)
        rows, positions, targets = [], [], []
        for row, number in enumerate(chosen):
            sequence, length = sequences[number], len(examples[pairs[number][0]].prompt)
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
            prompt[row, :length] = 1
            for position in range(length - 1, len(sequence) - 1):
                rows.append(row)
                positions.append(position)
                targets.append(sequence[position + 1])
        device = model.device
        encoded = model.encode(ids.to(device), mask.to(device), prompt_mask=prompt.bool().to(device))
        at = torch.tensor(rows, device=device), torch.tensor(positions, device=device)
        logits = model.logits(encoded, encoded.at(*at).float(), *at)  # as `score` does
        values = torch.log_softmax(logits, -1)[torch.arange(len(rows)), torch.tensor(targets, device=device)]
        for row, value in zip(rows, values.tolist(), strict=True):
            i, c = pairs[chosen[row]]
            found[i][c] += value
        start = end
    return found


def run(
    workload: Workload,
    k: Sequence[int] = (2,),
    *,
    rounds: int = 5,
    problems: int = 4,
    compiled: bool = False,
    tick: Callable[[str, int], Callable[[int], None]] | None = None,
) -> list[Comparison]:
    """Time scoring in turns.

    Args:
        problems: ACRE problems a format, four questions each.

    Returns:
        `score_speedup` for each K: examples a second of ours divided by theirs.

    Raises:
        ConfigurationError: the two disagree about a score, so that there is nothing to compare.
    """
    numbers, _ = check(k, ())
    tokenizer = load_tokenizer(workload.base)
    pad = tokenizer.pad_token_id
    sources = [DataSource(acre="IID", split="test", problems=problems, format=form) for form in FORMATS]  # type: ignore[arg-type]
    examples = encode(read_sources(sources), tokenizer)
    found = []
    for count in numbers:
        model = of.iclm(workload, HALF, count, compiled).model.eval()
        ours = score(model, examples, pad=pad, tokens_per_batch=TOKENS).choices["mixture"]
        theirs = score_pairs(model, examples, pad)
        off = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
        if off > (1e-3 if model.dtype == torch.float32 else 1.0):
            raise ConfigurationError(f"the two ways of scoring differ by {off:.3g} nats; there is nothing to compare")
        progress = None if tick is None else tick(f"scoring, K = {count}", 2 * (rounds + 1))

        def packed(model: ICLMForCausalLM = model) -> None:
            score(model, examples, pad=pad, tokens_per_batch=TOKENS)

        def alone(model: ICLMForCausalLM = model) -> None:
            score_pairs(model, examples, pad)

        seconds = take_turns({"ours": packed, "theirs": alone}, rounds, tick=progress)
        speeds = {name: [len(examples) / value for value in values] for name, values in seconds.items()}
        found.append(compare("score_speedup", count, speeds["ours"], speeds["theirs"], "examples/s"))
    return found
