"""Parts of a split, so that no strategy is scored on what it was fitted on, nor on other questions of that problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from iclm.data.draws import shuffled, stream
from iclm.data.example import Example, Message

_FEWEST_PROBLEMS = 5
_MOST_QUESTIONS = 20


def prompt_key(messages: Iterable[Message]) -> bytes:
    """A digest of messages: the same for the same prompt, in every process."""
    digest = blake2b(digest_size=16)
    for message in messages:
        for text in (message.role, message.content):
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.digest()


def problem_keys(examples: Sequence[Example]) -> list[bytes]:
    """What problem each example belongs to.

    That is its `group`. Without one it is the messages before the last, which the questions of one problem share;
    where there are none, or too many examples share them (an instruction that prompts begin with), it is the prompt with
    its choices, whatever their order.
    """
    contexts = [prompt_key(example.messages[:-1]) for example in examples]
    sizes = Counter(contexts)
    most = max(_MOST_QUESTIONS, len(examples) // 20) if len(sizes) >= _FEWEST_PROBLEMS else 1
    keys = []
    for example, context in zip(examples, contexts, strict=True):
        if example.group is not None:
            keys.append(b"group " + example.group.encode("utf-8", "surrogatepass"))
        elif len(example.messages) > 1 and sizes[context] <= most:
            keys.append(context)
        else:
            keys.append(prompt_key([*example.messages, *(Message("choice", text) for text in sorted(example.choices))]))
    return keys


def sample_problems(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """At most `most` examples (all of them if there are no more), whole problems drawn at random, in file order."""
    if len(examples) <= most:
        return list(examples)
    keys = problem_keys(examples)
    sizes: dict[bytes, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    kept: set[bytes] = set()
    room = most
    for key in shuffled(stream("audit-sample", seed), sizes):
        if sizes[key] <= room:
            kept.add(key)
            room -= sizes[key]
    return [example for example, key in zip(examples, keys, strict=True) if key in kept] or list(examples[:most])


def make_folds(examples: Sequence[Example], count: int, seed: int) -> list[list[int]]:
    """Cut a split into parts of whole problems.

    Args:
        examples: the split.
        count: the number of parts; fewer if there are fewer problems.
        seed: names the draw.

    Returns:
        The numbers of the examples in each part, in order; a single part if there is only one problem.
    """
    keys = problem_keys(examples)
    order = shuffled(stream("audit-folds", seed), dict.fromkeys(keys))
    count = max(1, min(count, len(order)))
    part = {key: number % count for number, key in enumerate(order)}
    folds: list[list[int]] = [[] for _ in range(count)]
    for number, key in enumerate(keys):
        folds[part[key]].append(number)
    return folds
