"""Batches of several epochs: as many in each, and every pack once an epoch."""

import random

import pytest

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
