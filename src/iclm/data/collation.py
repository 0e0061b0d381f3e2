"""From examples to the tensors that a model takes.

The white space at the end of a prompt belongs to the answer: "-> " + "2" is tokenised as "->" and " 2", as it is in
running text. Examples of one problem (`Example.group`) that begin with the same tokens are packed into one sequence: the
shared prefix once, then a branch for each example (`branch_ids`: 0 in the prefix, 1, 2, ... in the branches, -1 at padding).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from transformers import PreTrainedTokenizerBase

from iclm.data.audit.folds import problem_keys
from iclm.data.example import Example
from iclm.errors import DataError

IGNORED = -100  # label of a token that nothing is to be learned from


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as token ids.

    Attributes:
        prompt: token ids of the prompt without the white space at its end.
        choices: token ids of each choice as it follows the prompt. Where those of one begin those of another, as "1" begins
            "12", all end with end-of-text: what is not said after a choice then counts as well.
        answer: token ids of the answer as it follows the prompt, without end-of-text.
        domain: number of its domain, -1 if not known.
        example: what it was made from.
    """

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]
    domain: int
    example: Example


def boundary(prompt: str) -> tuple[str, str]:
    """Split a prompt into its text and the blanks at its end, which are tokenised with the answer."""
    text = prompt.rstrip(" \t")
    return text, prompt[len(text) :]


def answer_blanks(example: Example) -> str:
    """The blanks at the end of an example's prompt, which are tokenised with the answer; a chat template leaves none."""
    return "" if example.chat else boundary(example.prompt)[1]


def prompt_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The prompt of an example as it is tokenised, and the blanks that are tokenised with the answer.

    By the tokenizer's chat template, where the example says so, up to where the assistant's turn begins: the template has the special
    tokens too.

    Raises:
        DataError: the tokenizer has no template, or the template does not take these messages.
    """
    if not example.chat:
        return boundary(example.prompt)
    messages = [{"role": message.role, "content": message.content} for message in example.messages]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)), ""
    except Exception as error:
        why = "the tokenizer has none" if tokenizer.chat_template is None else str(error).strip().partition("\n")[0]
        where = example.source or "an example"
        raise DataError(f"{where}: no prompt can be made by a chat template: {why}; leave out chat: true") from error


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    domains: dict[str, int] | None = None,
    max_tokens: int | None = None,
) -> list[EncodedExample]:
    """Tokenise examples.

    Args:
        domains: number of each domain name; None numbers all as unknown.
        max_tokens: the longest prompt plus answer (with end-of-text) that the model takes.

    Raises:
        DataError: an example that is too long, or whose answer has no token; the message names its source.
    """
    texts: dict[bool, list[str]] = {False: [], True: []}  # by whether a template has put the special tokens
    ends = []
    for example in examples:
        text, blanks = prompt_text(example, tokenizer)
        ends.append(blanks)
        texts[example.chat].append(text)
        texts[example.chat].extend(text + blanks + answer for answer in _answers(example))
    rows = {chat: iter(tokenise(found, tokenizer, special=not chat)) for chat, found in texts.items()}
    encoded = []
    for example, blanks in zip(examples, ends, strict=True):
        ids = rows[example.chat]
        prompt = next(ids)
        follow = {a: _continuation(prompt, next(ids), blanks + a, tokenizer) for a in _answers(example)}
        where = example.source or "an example"
        if not all(follow.values()):
            raise DataError(f"{where}: an answer has no token under this tokenizer")
        longest = len(prompt) + max(map(len, follow.values())) + 1
        if max_tokens is not None and longest > max_tokens:
            raise DataError(
                f"{where}: prompt and answer are {longest} tokens; the limit is {max_tokens}; "
                "shorten or leave out the example, or raise max_tokens if the model's context allows"
            )
        number = -1 if domains is None or example.domain is None else domains.get(example.domain, -1)
        choices = _told_apart(tuple(follow[choice] for choice in example.choices), tokenizer.eos_token_id)
        encoded.append(EncodedExample(tuple(prompt), choices, follow[example.answer], number, example))
    return encoded


def _told_apart(choices: tuple[tuple[int, ...], ...], end: int | None) -> tuple[tuple[int, ...], ...]:
    """Choices none of which begins another, which it could otherwise never lose to: with end-of-text where one does."""
    ordered = sorted(set(choices))  # a choice comes right before those that it begins
    nested = any(after[: len(before)] == before for before, after in pairwise(ordered))
    return tuple((*choice, end) for choice in choices) if nested and end is not None else choices


def _answers(example: Example) -> tuple[str, ...]:
    return example.choices or (example.answer,)


def tokenise(texts: list[str], tokenizer: PreTrainedTokenizerBase, *, special: bool = True) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer puts before it, but none that ends it.

    Args:
        special: False where a chat template has put the special tokens into the text.
    """
    ids = tokenizer(texts, add_special_tokens=special, return_attention_mask=False)["input_ids"] if texts else []
    end = tokenizer.eos_token_id
    return [row[:-1] if special and len(row) > 1 and row[-1] == end else row for row in ids]


def _continuation(
    prompt: list[int], whole: list[int], text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    if whole[: len(prompt)] == prompt:
        return tuple(whole[len(prompt) :])
    # the tokenizer merges across the boundary: the answer is tokenised on its own
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Branch:
    """One continuation of a pack's prefix.

    Attributes:
        tokens: token ids after the prefix.
        labelled: how many of the last tokens are labels.
        domain: number of its domain, -1 if not known.
    """

    tokens: tuple[int, ...]
    labelled: int
    domain: int


@dataclass(frozen=True, slots=True)
class Pack:
    """Branches that share a prefix (which may be empty where there is only one).

    Attributes:
        prefix: token ids that all branches begin with.
        branches: what follows, at least one.
        features: what a router reads of each branch's prompt, float32 [branches, hidden], where it was computed before.
    """

    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]
    features: torch.Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Length of the packed sequence."""
        return len(self.prefix) + sum(len(branch.tokens) for branch in self.branches)


def make_pack(sequences: Sequence[Branch]) -> Pack:
    """Pack whole sequences: what all of them begin with, labels left out, becomes the prefix."""
    if len(sequences) == 1:
        return Pack((), tuple(sequences))
    limit = min(len(branch.tokens) - max(branch.labelled, 1) for branch in sequences)
    first, shared = sequences[0].tokens, 0
    while shared < limit and all(branch.tokens[shared] == first[shared] for branch in sequences):
        shared += 1
    branches = tuple(Branch(branch.tokens[shared:], branch.labelled, branch.domain) for branch in sequences)
    return Pack(first[:shared], branches)


def make_packs(sequences: Sequence[Branch], most: int | None = None, tokens: int | None = None) -> list[Pack]:
    """Pack whole sequences, in their order, into as few packs as have at most so many branches and tokens.

    Args:
        most: branches of a pack; None means all.
        tokens: of a pack, where it has more than one branch: a longer one is halved. None means no limit.
    """
    size = len(sequences) if most is None else most
    packs = []
    for start in range(0, len(sequences), max(size, 1)):
        part = sequences[start : start + size]
        pack = make_pack(part)
        if tokens is not None and pack.tokens > tokens and len(part) > 1:
            packs += make_packs(part, (len(part) + 1) // 2, tokens)
        else:
            packs.append(pack)
    return packs


def split_pack(pack: Pack) -> list[Pack]:
    """The branches of a pack as whole sequences of their own, in their order."""
    return [Pack((), (replace(branch, tokens=pack.prefix + branch.tokens),)) for branch in pack.branches]


def recut(packs: Sequence[Pack], most: int, tokens: int | None = None) -> list[Pack]:
    """The same branches in packs of at most so many branches and tokens (`make_packs`); a pack within both stays as it is."""
    found: list[Pack] = []
    for pack in packs:
        fits = len(pack.branches) <= most and (tokens is None or pack.tokens <= tokens)
        if fits or len(pack.branches) == 1:
            found.append(pack)
            continue
        at = 0
        for part in make_packs([single.branches[0] for single in split_pack(pack)], most, tokens):
            end = at + len(part.branches)
            found.append(part if pack.features is None else replace(part, features=pack.features[at:end]))
            at = end
    return found


def by_group(encoded: Iterable[EncodedExample]) -> Iterator[list[EncodedExample]]:
    """Examples that follow each other and belong to one problem and domain, together."""
    group: list[EncodedExample] = []
    for item in encoded:
        key = (item.example.group, item.domain)
        if group and (key[0] is None or key != (group[0].example.group, group[0].domain)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def problems_of(encoded: Sequence[EncodedExample]) -> list[bytes]:
    """A key of the problem of each example (`problem_keys`)."""
    return problem_keys([item.example for item in encoded])


def training_packs(
    encoded: Iterable[EncodedExample],
    end: int | None,
    *,
    pack: bool = True,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
) -> list[Pack]:
    """Packs to train on: the labels are the answer and, where the tokenizer has one, the end-of-text token.

    Args:
        end: id of the end-of-text token.
        pack: False puts every example into a sequence of its own.
        batch_size: examples in a pack, at most; None means all of a problem.
        batch_tokens: tokens of a pack of several examples, at most; None means no limit.
    """
    packs = []
    for group in by_group(encoded):
        branches = []
        for item in group:
            labels = item.answer if end is None else (*item.answer, end)
            branches.append(Branch(item.prompt + labels, len(labels), item.domain))
        packs += make_packs(branches, batch_size if pack else 1, batch_tokens)
    return packs


def collate(packs: Sequence[Pack], pad: int) -> dict[str, torch.Tensor]:
    """Pad packs on the right to one batch.

    Returns:
        `input_ids`, `attention_mask`, `labels` [batch, tokens]; `domain_ids` [examples], where all are known;
        `branch_ids` [batch, tokens], where any pack has more than one branch; and `router_features` [examples, hidden],
        where all packs have them. Examples are numbered by pack, then by branch.
    """
    size = (len(packs), max(pack.tokens for pack in packs))
    ids = torch.full(size, pad)
    labels = torch.full(size, IGNORED)
    branch_ids = torch.full(size, -1)
    for row, pack in enumerate(packs):
        at = len(pack.prefix)
        ids[row, :at] = torch.tensor(pack.prefix, dtype=torch.long)
        branch_ids[row, :at] = 0
        for number, branch in enumerate(pack.branches, start=1):
            tokens = torch.tensor(branch.tokens, dtype=torch.long)
            ids[row, at : at + len(tokens)] = tokens
            branch_ids[row, at : at + len(tokens)] = number
            at += len(tokens)
            if branch.labelled:
                labels[row, at - branch.labelled : at] = tokens[-branch.labelled :]
    batch = {"input_ids": ids, "attention_mask": (branch_ids >= 0).long(), "labels": labels}
    domains = [branch.domain for pack in packs for branch in pack.branches]
    if min(domains) >= 0:
        batch["domain_ids"] = torch.tensor(domains)
    if any(len(pack.branches) > 1 for pack in packs):
        batch["branch_ids"] = branch_ids
    features = [pack.features for pack in packs if pack.features is not None]
    if len(features) == len(packs):
        batch["router_features"] = torch.cat(features)
    return batch


class LengthBucketedBatches:
    """Batches of packs of similar length, in an order that depends on the seed and the epoch alone.

    Args:
        packs: what is drawn from.
        batch_size: examples (branches) in a batch, at most; a pack larger than that is a batch of its own.
        seed: of the order.
        bucket: batches whose packs are sorted by length together.
        batch_tokens: padded tokens (packs times the longest) of a batch, at most; a pack longer than that is a batch of
            its own. None means no limit.

    Iterating gives lists of pack numbers; every pack occurs exactly once an epoch.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        batch_size: int,
        seed: int = 0,
        bucket: int = 16,
        batch_tokens: int | None = None,
    ) -> None:
        self.packs, self.seed, self.bucket = packs, seed, bucket
        self.batch_examples, self.batch_tokens = batch_size, batch_tokens
        self.drop_last = False
        self.epoch = 0
        self._length: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch
        self._length = None

    def __len__(self) -> int:
        if self._length is None:
            self._length = len(self._batches())
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches())

    def _batches(self) -> list[list[int]]:
        order = list(range(len(self.packs)))
        source = random.Random(f"{self.seed}/{self.epoch}")
        source.shuffle(order)
        batches: list[list[int]] = []
        span = self._span()
        for start in range(0, len(order), span):
            near = sorted(order[start : start + span], key=lambda index: self.packs[index].tokens)
            batches.extend(self._cut(near))
        source.shuffle(batches)
        return batches

    def _span(self) -> int:
        """Packs that are sorted together: as many as fill `bucket` batches."""
        count = max(len(self.packs), 1)
        mean = sum(len(pack.branches) for pack in self.packs) / count
        span = round(self.bucket * self.batch_examples / max(mean, 1))
        if self.batch_tokens is not None:
            mean = sum(pack.tokens for pack in self.packs) / count
            span = min(span, round(self.bucket * self.batch_tokens / max(mean, 1)))
        return max(1, span)

    def _cut(self, near: Iterable[int]) -> Iterator[list[int]]:
        """Cut pack numbers, sorted by length, into batches within the limits."""
        batch: list[int] = []
        examples = 0
        for index in near:
            pack = self.packs[index]
            padded = (len(batch) + 1) * pack.tokens  # the last is the longest
            full = examples + len(pack.branches) > self.batch_examples
            if batch and (full or (self.batch_tokens is not None and padded > self.batch_tokens)):
                yield batch
                batch, examples = [], 0
            batch.append(index)
            examples += len(pack.branches)
        if batch:
            yield batch
