"""Batches of several epochs, the same number in each.

How many batches an epoch needs depends a little on its order, but the Trainer counts the first epoch and takes all others to be
as long: a longer one would be cut off, a shorter one would put the learning rate and a resumed training out of step.
"""

from __future__ import annotations

from collections.abc import Sequence

from iclm.data.collation import LengthBucketedBatches, Pack


class EvenBatches(LengthBucketedBatches):
    """`LengthBucketedBatches` where an epoch that would have fewer batches than another has its largest ones halved.

    Args:
        packs, batch_size, seed, batch_tokens: as there.
        epochs: how many epochs there will be.
        first: the epoch whose order comes first: a later stage goes on where an earlier one ended.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        batch_size: int,
        seed: int = 0,
        epochs: int = 1,
        first: int = 0,
        batch_tokens: int | None = None,
    ) -> None:
        super().__init__(packs, batch_size, seed, batch_tokens=batch_tokens)
        self.first, self._even = first, 0
        for epoch in range(epochs):
            self.set_epoch(epoch)
            self._even = max(self._even, len(super()._batches()))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        super().set_epoch(self.first + epoch)

    def _batches(self) -> list[list[int]]:
        batches = super()._batches()
        while len(batches) < self._even:
            index = max(range(len(batches)), key=lambda number: len(batches[number]))
            half = len(batches[index]) // 2
            batches[index : index + 1] = [batches[index][:half], batches[index][half:]]
        return batches
