"""Seconds of reading a prompt and of a token after it, with the cache: an ICLM of half the layers beside plain LoRA."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from iclm.studies.bench import contestants as of
from iclm.studies.bench.contestants import Contestant, Workload
from iclm.studies.bench.step import HALF, check
from iclm.studies.bench.timing import Comparison, compare, now, take_turns

NEW_TOKENS = 8  # whose mean counts


class _Reader:
    """Reads the prompts of a contestant and answers token by token; keeps the time of either."""

    def __init__(self, contestant: Contestant) -> None:
        self.model = contestant.model.eval()
        self.ids, self.mask = contestant.batch["input_ids"], contestant.batch["attention_mask"]
        self.decoding = 0.0

    @torch.inference_mode()
    def prefill(self) -> float:
        """Seconds of the prompts; those of a new token are kept beside."""
        started = now()
        out = self.model(input_ids=self.ids, attention_mask=self.mask, use_cache=True, logits_to_keep=1)
        read = now()
        mask = self.mask
        for _ in range(NEW_TOKENS):
            ids = out.logits[:, -1:].argmax(-1)
            mask = torch.cat([mask, mask[:, :1]], dim=1)
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=out.past_key_values,
                use_cache=True,
                logits_to_keep=1,
            )
        self.decoding = (now() - read) / NEW_TOKENS
        return read - started


def run(
    workload: Workload,
    k: Sequence[int] = (2, 6, 16),
    *,
    rounds: int = 7,
    compiled: bool = False,
    tick: Callable[[str, int], Callable[[int], None]] | None = None,
) -> list[Comparison]:
    """Time generation in turns: `prefill_half` and `decode_half` for each K; see `iclm.studies.bench.step.run`."""
    numbers, _ = check(k, ())
    field = {0: _Reader(of.lora(workload, compiled))}
    field |= {count: _Reader(of.iclm(workload, HALF, count, compiled)) for count in numbers}
    decoding: dict[int, list[float]] = {count: [] for count in field}
    progress = None if tick is None else tick("generation", (rounds + 1) * len(field))

    def turn(count: int) -> Callable[[], float]:
        def work() -> float:
            seconds = field[count].prefill()
            decoding[count].append(field[count].decoding)
            return seconds

        return work

    reading = take_turns({str(count): turn(count) for count in field}, rounds, tick=progress)
    plain = {"prefill": reading["0"], "decode": decoding[0][-rounds:]}
    found = []
    for count in numbers:
        found.append(compare("prefill_half", count, reading[str(count)], plain["prefill"], "s"))
        found.append(compare("decode_half", count, decoding[count][-rounds:], plain["decode"], "s"))
    return found
