"""Batches of several epochs: as many in each, and every pack once an epoch."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclm.data.collation import Branch, LengthBucketedBatches, Pack
from iclm.training.batches import EvenBatches

EPOCHS = 6


@pytest.fixture(scope="module")
def packs():
    """Packs of one or four examples and of many lengths, so that epochs need different numbers of batches."""
    source = random.Random(0)
    return [
        Pack((), tuple(Branch((1,) * source.randint(2, 40), 1, 0) for _ in range(source.choice([1, 1, 4]))))
        for _ in range(150)
    ]


def epochs(batches, count=EPOCHS):
    found = []
    for epoch in range(count):
        batches.set_epoch(epoch)
        found.append(list(batches))
        assert len(batches) == len(found[-1])
    return found


def test_every_epoch_has_as_many_batches_of_the_same_packs(packs):
    uneven = [len(epoch) for epoch in epochs(LengthBucketedBatches(packs, 16, 0))]
    assert len(set(uneven)) > 1, "otherwise this test shows nothing"
    found = epochs(EvenBatches(packs, 16, 0, EPOCHS))
    assert {len(epoch) for epoch in found} == {max(uneven)}
    for epoch in found:
        assert sorted(number for batch in epoch for number in batch) == list(range(150))
        assert max(sum(len(packs[number].branches) for number in batch) for batch in epoch) <= 16


def test_one_epoch_is_as_without(packs):
    assert list(EvenBatches(packs, 16, 3)) == list(LengthBucketedBatches(packs, 16, 3))


def test_a_later_stage_goes_on_with_the_orders_that_follow(packs):
    plain = epochs(LengthBucketedBatches(packs, 16, 0))
    for first in (1, 4):
        assert epochs(EvenBatches(packs, 16, 0, 1, first), 1) == [plain[first]]


PACKS = st.lists(
    st.lists(st.integers(1, 30), min_size=1, max_size=4).map(
        lambda lengths: Pack((), tuple(Branch((1,) * length, 1, 0) for length in lengths))
    ),
    min_size=1,
    max_size=60,
)


def examples_of(packs, batch):
    return sum(len(packs[number].branches) for number in batch)


def padded_tokens(packs, batch):
    return len(batch) * max(packs[number].tokens for number in batch)


@given(packs=PACKS, size=st.integers(1, 12), tokens=st.integers(1, 300), seed=st.integers(0, 9))
def test_batches_stay_within_both_limits_and_epochs_hold_every_pack_once(packs, size, tokens, seed):
    found = epochs(EvenBatches(packs, size, seed, 3, batch_tokens=tokens), 3)
    assert len({len(epoch) for epoch in found}) == 1
    for epoch in found:
        assert sorted(number for batch in epoch for number in batch) == list(range(len(packs)))
        for batch in epoch:
            within = examples_of(packs, batch) <= size and padded_tokens(packs, batch) <= tokens
            assert within or len(batch) == 1, f"{batch} is beyond a limit and could have been cut"
    assert epochs(EvenBatches(packs, size, seed, 3, batch_tokens=tokens), 3) == found, "seed and epoch decide the order"


@given(packs=PACKS, size=st.integers(1, 12), seed=st.integers(0, 9))
def test_a_budget_that_is_never_reached_changes_no_order(packs, size, seed):
    plenty = size * max(pack.tokens for pack in packs) * len(packs)
    assert epochs(LengthBucketedBatches(packs, size, seed, batch_tokens=plenty), 2) == epochs(
        LengthBucketedBatches(packs, size, seed), 2
    )


def test_a_batch_is_closed_only_where_the_next_pack_would_not_fit(packs):
    batches = LengthBucketedBatches(packs, 1000, 0, bucket=1000, batch_tokens=400)  # one bucket: all sorted by length
    found = sorted(batches, key=lambda batch: [packs[number].tokens for number in batch])
    assert len(found) > 3
    for batch, following in pairwise(found):
        assert padded_tokens(packs, [*batch, following[0]]) > 400


def test_batches_of_a_budget_are_padded_little(packs):
    found = list(LengthBucketedBatches(packs, 1000, 0, batch_tokens=400))
    real = sum(pack.tokens for pack in packs)
    in_order = sum(padded_tokens(packs, range(at, min(at + 8, 150))) for at in range(0, 150, 8))
    assert sum(padded_tokens(packs, batch) for batch in found) - real < (in_order - real) / 4


@given(packs=PACKS, size=st.integers(1, 12), seed=st.integers(0, 9), processes=st.integers(2, 4))
def test_several_processes_share_all_batches(packs, size, seed, processes):
    """In each step what one process has in as many batches; only where all are of one pack some come twice."""
    shares = [
        epochs(EvenBatches(packs, size, seed, 2, processes=processes, process=rank), 2) for rank in range(processes)
    ]
    assert len({len(epoch) for share in shares for epoch in share}) == 1, "with fewer the others would wait for ever"
    whole = epochs(EvenBatches(packs, size, seed, 2), 2)
    for number, alone in enumerate(whole):
        steps = list(zip(*(share[number] for share in shares), strict=True))
        seen = sorted(pack for step in steps for batch in step for pack in batch)
        if len(seen) > len(packs):
            assert all(len(batch) == 1 for step in steps for batch in step) and len(seen) - len(packs) < processes
            assert set(seen) == set(range(len(packs)))
            continue
        assert seen == list(range(len(packs)))
        last = alone[(len(steps) - 1) * processes :]
        if sum(map(len, last)) < processes:  # too few packs in the last step: batches elsewhere were cut
            continue
        together = [sorted(pack for batch in step for pack in batch) for step in steps]
        expected = [alone[at : at + processes] for at in range(0, len(alone), processes)]
        assert together == [sorted(pack for batch in step for pack in batch) for step in expected]
