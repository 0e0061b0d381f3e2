"""Batches of several epochs, the same number in each, and of several processes, as many for each.

How many batches an epoch needs depends a little on its order, but the Trainer counts the first epoch and takes all others to be
as long: a longer one would be cut off, a shorter one would put the learning rate and a resumed training out of step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iclm.data.collation import LengthBucketedBatches, Pack


class EvenBatches(LengthBucketedBatches):
    """`LengthBucketedBatches` where an epoch that would have fewer batches than another has its largest ones halved.

    Of several processes each gets the batches of its number in turn, so that one step of all of them is what one process would make of as
    many batches. Where the number of batches is no multiple of theirs, those of the last step are halved too; where they
    are of one pack each, larger ones elsewhere, and where there is none, the first batches come again at the end.

    Args:
        packs, batch_size, seed, batch_tokens: as there.
        epochs: how many epochs there will be.
        first: the epoch whose order comes first: a later stage goes on where an earlier one ended.
        processes: among which the batches are shared.
        process: the number of this one.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        batch_size: int,
        seed: int = 0,
        epochs: int = 1,
        first: int = 0,
        batch_tokens: int | None = None,
        processes: int = 1,
        process: int = 0,
    ) -> None:
        super().__init__(packs, batch_size, seed, batch_tokens=batch_tokens)
        self.first, self._even = first, 0
        self.processes, self.process = processes, process
        for epoch in range(epochs):
            self.set_epoch(epoch)
            self._even = max(self._even, len(super()._batches()))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        super().set_epoch(self.first + epoch)

    def __len__(self) -> int:
        return super().__len__() // self.processes

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[self.process :: self.processes])

    def _batches(self) -> list[list[int]]:
        batches = super()._batches()
        while len(batches) < self._even:
            _halve(batches, 0)
        last = len(batches) - len(batches) % self.processes
        for number in range(-len(batches) % self.processes):
            if not _halve(batches, last) and not _halve(batches, 0):
                batches.append(batches[number])
        return batches


def _halve(batches: list[list[int]], start: int) -> bool:
    """Make two of the largest of the batches from `start` on; returns whether there was one that can be halved."""
    index = max(range(start, len(batches)), key=lambda number: len(batches[number]))
    half = len(batches[index]) // 2
    if half:
        batches[index : index + 1] = [batches[index][:half], batches[index][half:]]
    return bool(half)
