"""Collation: what is read, what is labelled, what shares a sequence, in which order."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iclm.data.acre import examples, generate
from iclm.data.collation import (
    IGNORED,
    Branch,
    EncodedExample,
    LengthBucketedBatches,
    boundary,
    by_group,
    collate,
    encode,
    make_pack,
    recut,
    split_pack,
    training_packs,
)
from iclm.data.example import Example, Message
from iclm.errors import DataError


def example(prompt="one two -> ", choices=("0", "1", "22"), answer="22", **fields):
    return Example((Message("user", prompt),), choices, answer, **fields)


@pytest.fixture(scope="module")
def acre():
    """Examples of four problems in both renderings."""
    return [e for form in ("text", "symbolic") for p in generate("IID", "train", 4, seed=2) for e in examples(p, form)]


def whole_text(tokenizer, item):
    return tokenizer.decode([*item.prompt, *item.answer])


# -- encode ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, text, blanks",
    [("a -> ", "a ->", " "), ("a", "a", ""), ("a \t ", "a", " \t "), ("a\n", "a\n", ""), (" a", " a", "")],
)
def test_blanks_at_the_end_of_a_prompt_belong_to_the_answer(prompt, text, blanks):
    assert boundary(prompt) == (text, blanks)


def test_answer_is_tokenised_as_in_running_text(tiny_tokenizer, acre):
    for item in encode(acre, tiny_tokenizer):
        running = tiny_tokenizer(item.example.prompt + item.example.answer)["input_ids"]
        assert list(item.prompt + item.answer) == running
        assert tiny_tokenizer.decode(item.answer) == " " + item.example.answer
        assert not tiny_tokenizer.decode(item.prompt).endswith(" ")


def test_tokens_give_back_prompt_and_answer(tiny_tokenizer, acre):
    for item in encode(acre, tiny_tokenizer):
        assert whole_text(tiny_tokenizer, item) == item.example.prompt + item.example.answer


def test_every_choice_continues_the_same_prompt(tiny_tokenizer):
    (item,) = encode([example(choices=("on", "off", "undetermined"), answer="off")], tiny_tokenizer)
    assert [tiny_tokenizer.decode(choice) for choice in item.choices] == [" on", " off", " undetermined"]
    assert item.answer == item.choices[1]


def test_prompt_without_blanks_keeps_its_tokens_where_the_tokenizer_would_merge(tiny_tokenizer):
    """The router and the cache know the prompt only: its tokens must not depend on the answer."""
    for prompt, answer in (("The light is o", "n"), ("blue sph", "ere"), ("is", "visible")):
        (item,) = encode([example(prompt, (answer,), answer)], tiny_tokenizer)
        assert list(item.prompt) == tiny_tokenizer(prompt)["input_ids"]
        assert tiny_tokenizer.decode(item.answer) == answer


def test_free_answer_has_no_choices(tiny_tokenizer):
    (item,) = encode([example(choices=(), answer="red cube")], tiny_tokenizer)
    assert item.choices == () and tiny_tokenizer.decode(item.answer) == " red cube"


def test_start_and_end_tokens_of_a_tokenizer_stay_with_the_prompt(tiny_tokenizer):
    """A tokenizer that adds both: the start token is read, the end token is not put in the middle."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = type(tiny_tokenizer._tokenizer).from_str(tiny_tokenizer._tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<pad> $A <eos>", special_tokens=[("<pad>", 0), ("<eos>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    (plain,), (item,) = encode([example()], tiny_tokenizer), encode([example()], tokenizer)
    assert item.prompt == (0, *plain.prompt)
    assert item.answer == plain.answer and item.choices == plain.choices


def test_domains_are_numbered_as_told(tiny_tokenizer):
    items = [example(domain=name) for name in ("text", "symbolic", "other", None)]
    assert [e.domain for e in encode(items, tiny_tokenizer, domains={"symbolic": 0, "text": 1})] == [1, 0, -1, -1]
    assert [e.domain for e in encode(items, tiny_tokenizer)] == [-1] * 4


def test_too_long_prompt_names_its_source_and_the_limit(tiny_tokenizer):
    item = example("one two three four -> ", source="train.jsonl:17")
    (fits,) = encode([item], tiny_tokenizer)
    needed = len(fits.prompt) + max(map(len, fits.choices)) + 1
    encode([item], tiny_tokenizer, max_tokens=needed)
    with pytest.raises(DataError, match=rf"train\.jsonl:17.*{needed} tokens.*limit is {needed - 1}"):
        encode([example(), item], tiny_tokenizer, max_tokens=needed - 1)


def test_answer_without_tokens_names_its_source(tiny_tokenizer, monkeypatch):
    from iclm.data import collation

    monkeypatch.setattr(collation, "_continuation", lambda *_: ())
    with pytest.raises(DataError, match="some:3"):
        encode([example(source="some:3")], tiny_tokenizer)


def test_no_example_gives_nothing(tiny_tokenizer):
    assert encode([], tiny_tokenizer) == []


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [True, False])
def test_nothing_but_the_answer_and_the_end_is_labelled(tiny_tokenizer, acre, pack):
    """Of a tokenizer that adds no start token, too, and of an answer of several tokens."""
    acre = [*acre, example(choices=(), answer="undetermined rubber 22 cubes"), example(choices=(), answer="0")]
    encoded = encode(acre, tiny_tokenizer)
    end = tiny_tokenizer.eos_token_id
    batch = collate(training_packs(encoded, end, pack=pack), tiny_tokenizer.pad_token_id)
    branch = batch.get("branch_ids", torch.where(batch["attention_mask"] == 1, 1, -1))
    found = []
    for row in range(len(branch)):
        for number in range(1, int(branch[row].max()) + 1):
            labels = batch["labels"][row][(branch[row] == number) & (batch["labels"][row] != IGNORED)]
            found.append(tuple(labels.tolist()))
    assert found == [(*item.answer, end) for item in encoded]
    assert max(map(len, found)) > 3
    labelled = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][labelled], batch["input_ids"][labelled])
    assert batch["attention_mask"][labelled].all()


def test_every_example_can_be_read_back_from_a_packed_batch(tiny_tokenizer, acre):
    encoded = encode(acre, tiny_tokenizer)
    batch = collate(training_packs(encoded, tiny_tokenizer.eos_token_id), tiny_tokenizer.pad_token_id)
    found = []
    for ids, branch in zip(batch["input_ids"], batch["branch_ids"], strict=True):
        for number in range(1, int(branch.max()) + 1):
            found.append(tiny_tokenizer.decode(torch.cat([ids[branch == 0], ids[branch == number]])))
    assert found == [item.example.prompt + item.example.answer + "<eos>" for item in encoded]


def test_without_an_end_token_the_answer_alone_is_labelled(tiny_tokenizer):
    batch = collate(training_packs(encode([example()], tiny_tokenizer), None), 0)
    labels = batch["labels"][0]
    assert tiny_tokenizer.decode(labels[labels != IGNORED]) == " 22"


def test_padding_is_neither_attended_nor_labelled(tiny_tokenizer):
    items = encode([example(), example("a much longer prompt than the other one -> ")], tiny_tokenizer)
    batch = collate(training_packs(items, 1), 0)
    assert batch["attention_mask"].sum(1).tolist() == [len(i.prompt) + len(i.answer) + 1 for i in items]
    padding = batch["attention_mask"] == 0
    assert padding.any() and batch["labels"][padding].eq(IGNORED).all() and batch["input_ids"][padding].eq(0).all()


# -- packs -------------------------------------------------------------------------------------------------------------


def test_the_queries_of_a_problem_share_one_sequence(tiny_tokenizer, acre):
    encoded = encode(acre, tiny_tokenizer)
    packs = training_packs(encoded, 1)
    assert [len(pack.branches) for pack in packs] == [4] * 8
    assert sum(pack.tokens for pack in packs) < 0.6 * sum(len(item.prompt) for item in encoded)
    assert [len(pack.branches) for pack in training_packs(encoded, 1, pack=False)] == [1] * 32


def test_a_pack_has_no_more_examples_and_tokens_than_a_batch_may(tiny_tokenizer, acre):
    encoded = encode(acre, tiny_tokenizer)
    whole = training_packs(encoded, 1)
    assert training_packs(encoded, 1, batch_size=4, batch_tokens=10_000) == whole
    assert [len(pack.branches) for pack in training_packs(encoded, 1, batch_size=3)] == [3, 1] * 8
    longest = max(pack.tokens for pack in whole)
    for limit in (longest - 1, longest // 2, 1):
        packs = training_packs(encoded, 1, batch_tokens=limit)
        assert all(pack.tokens <= limit or len(pack.branches) == 1 for pack in packs) and len(packs) > 8
        alone = [pack for made in packs for pack in split_pack(made)]
        assert alone == [pack for made in whole for pack in split_pack(made)]


SEQUENCES = st.lists(
    st.tuples(st.lists(st.integers(2, 3), min_size=1, max_size=6), st.lists(st.integers(2, 3), min_size=1, max_size=3)),
    min_size=1,
    max_size=4,
)


@given(SEQUENCES)
def test_a_pack_holds_its_sequences_and_labels_stay_in_branches(sequences):
    pack = make_pack([Branch((*prompt, *labels), len(labels), 0) for prompt, labels in sequences])
    assert [pack.prefix + branch.tokens for branch in pack.branches] == [(*p, *labels) for p, labels in sequences]
    for branch, (_, labels) in zip(pack.branches, sequences, strict=True):
        assert branch.tokens[len(branch.tokens) - branch.labelled :] == tuple(labels)
    if len(sequences) > 1:
        prompts = [p for p, _ in sequences]
        shared = 0
        while all(len(p) > shared and p[shared] == prompts[0][shared] for p in prompts):
            shared += 1
        limit = min(len(p) for p in prompts)
        whole = [(*p, *labels) for p, labels in sequences]
        while shared < limit and len({w[shared] for w in whole}) == 1:
            shared += 1
        assert len(pack.prefix) == shared, "the prefix is as long as it can be"


@given(SEQUENCES)
def test_a_pack_is_split_into_the_sequences_that_it_was_made_of(sequences):
    branches = [Branch((*prompt, *labels), len(labels), number) for number, (prompt, labels) in enumerate(sequences)]
    assert split_pack(make_pack(branches)) == [make_pack([branch]) for branch in branches]


@given(st.lists(SEQUENCES, max_size=4), st.integers(1, 4), st.none() | st.integers(1, 30))
def test_packs_that_are_cut_again_hold_the_same_sequences_with_their_features(groups, most, tokens):
    packs, number = [], 0
    for sequences in groups:
        branches = [Branch((*p, *labels), len(labels), number + at) for at, (p, labels) in enumerate(sequences)]
        features = torch.arange(number, number + len(branches)).float()[:, None]
        packs.append(replace(make_pack(branches), features=features))
        number += len(branches)
    cut = recut(packs, most, tokens)
    assert [one for pack in cut for one in split_pack(pack)] == [one for pack in packs for one in split_pack(pack)]
    for pack in cut:
        fits = len(pack.branches) <= most and (tokens is None or pack.tokens <= tokens)
        assert fits or len(pack.branches) == 1
        assert pack.features.flatten().tolist() == [branch.domain for branch in pack.branches]
    assert all(any(pack is one for one in packs) for pack in cut) or len(cut) > len(packs), "what fits stays as it is"


def encoded_like(group, domain, tokens=(5, 6)):
    return EncodedExample(tokens, ((7,),), (7,), domain, example(group=group))


def test_groups_are_neighbours_of_one_problem_and_domain():
    items = [encoded_like(*key) for key in (("a", 0), ("a", 0), ("a", 1), ("b", 1), (None, 1), (None, 1), ("a", 0))]
    groups = list(by_group(items))
    assert [len(group) for group in groups] == [2, 1, 1, 1, 1, 1]
    assert [item for group in groups for item in group] == items


def test_domains_are_given_where_all_are_known():
    packs = training_packs([encoded_like("a", 1), encoded_like("a", 1), encoded_like(None, 0)], 1)
    assert collate(packs, 0)["domain_ids"].tolist() == [1, 1, 0]
    assert "domain_ids" not in collate(training_packs([encoded_like("a", 1), encoded_like("b", -1)], 1), 0)


def test_branch_ids_are_given_only_where_something_is_shared():
    assert "branch_ids" not in collate(training_packs([encoded_like("a", 0), encoded_like("b", 0)], 1), 0)
    batch = collate(training_packs([encoded_like("a", 0), encoded_like("a", 0), encoded_like("b", 0)], 1), 0)
    assert batch["branch_ids"].tolist() == [[0, 0, 1, 1, 2, 2], [1, 1, 1, 1, -1, -1]]


# -- batches -----------------------------------------------------------------------------------------------------------


@st.composite
def many_packs(draw):
    shapes = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=0, max_size=60))
    return [make_pack([Branch((9, *range(2, 2 + size), 2), 1, 0)] * count) for count, size in shapes]


@given(many_packs(), st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_batches_cover_each_pack_once_within_the_size(packs, size, seed, epoch):
    batches = LengthBucketedBatches(packs, size, seed)
    batches.set_epoch(epoch)
    found = list(batches)
    assert sorted(index for batch in found for index in batch) == list(range(len(packs)))
    assert len(batches) == len(found)
    for batch in found:
        assert batch and (len(batch) == 1 or sum(len(packs[i].branches) for i in batch) <= size)


def packs_of_lengths(n=200):
    lengths = torch.randint(2, 60, (n,), generator=torch.Generator().manual_seed(0)).tolist()
    return [make_pack([Branch(tuple(range(length)), 1, 0)]) for length in lengths]


def test_order_depends_on_seed_and_epoch_alone():
    packs = packs_of_lengths()

    def order(seed, epoch):
        batches = LengthBucketedBatches(packs, 8, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)
    batches = LengthBucketedBatches(packs, 8, 1)
    first = list(batches)
    assert list(batches) == first, "iterating again in one epoch gives the same"
    batches.set_epoch(2)
    list(batches)
    batches.set_epoch(0)
    assert list(batches) == first


def test_packs_of_a_batch_have_similar_lengths():
    packs = packs_of_lengths()

    def padding(batches):
        return sum(max(packs[i].tokens for i in b) * len(b) for b in batches) - sum(pack.tokens for pack in packs)

    plain = [list(range(start, start + 8)) for start in range(0, 200, 8)]
    assert padding(LengthBucketedBatches(packs, 8)) < 0.4 * padding(plain)


def test_a_choice_that_begins_another_ends_so_that_it_can_lose(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    nested, apart = encode([example(choices=("1", "1 2", "7"), answer="1 2"), example()], tiny_tokenizer)
    one, other, _ = nested.choices
    assert all(choice[-1] == end for choice in nested.choices) and other[: len(one) - 1] == one[:-1]
    assert nested.answer == other[:-1]  # labels have their own end
    assert not any(end in choice for choice in apart.choices)


def test_batches_do_not_come_in_the_order_of_their_lengths():
    from iclm.data.collation import Branch, LengthBucketedBatches, make_pack

    packs = [make_pack([Branch(tuple(range(2 + number % 60)), 1, 0)]) for number in range(120)]
    lengths = [packs[batch[0]].tokens for batch in LengthBucketedBatches(packs, 8, 1)]  # all in one bucket
    assert len(lengths) == 15 and lengths != sorted(lengths)
