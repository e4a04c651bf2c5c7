"""Where :func:`~ecgmeta.bilevel.loop.meta_train` gets its batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Batches(Protocol):
    """Where batches come from. Giving each its batch by number is what makes a resumed run exact.

    A φ step that averages over N draws asks for ``hyper(step, k)`` and ``validation(step, k)`` with k = 0 … N−1, and for
    ``train(step, k)`` with k = 0 … NK−1: draw i fine-tunes on batches iK … iK+K−1. With a shared pre-training batch the first
    draw takes ``pretrain(step)`` and ``hyper`` begins at k = 1.
    """

    def pretrain(self, step: int) -> Any:
        """The batch of the ordinary pre-training step."""
        ...

    def hyper(self, step: int, k: int) -> Any:
        """A pre-training batch for the products of a φ step; ``k`` counts its draws."""
        ...

    def train(self, step: int, k: int) -> Any:
        """A fine-tuning training batch; ``k`` counts the steps of an unroll, on through the draws."""
        ...

    def validation(self, step: int, k: int) -> Any:
        """A fine-tuning validation batch; ``k`` counts the draws of a φ step."""
        ...


@dataclass(frozen=True)
class MicroBatches:
    """A pre-training batch too large for one pass: parts whose gradients are averaged before the step.

    The step is that of the mean of the parts' losses, each part seeing itself alone: contrastive negatives, like batch
    statistics, come from a part.
    """

    parts: Sequence[Any]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("MicroBatches needs at least one part")


class LoaderBatches:
    """:class:`Batches` from three iterables (such as ``DataLoader``), each started again when it ends.

    A resumed run does not see the same batches unless the iterables do: number the batches yourself where that matters.
    """

    def __init__(self, pretrain: Iterable[Any], train: Iterable[Any], validation: Iterable[Any]) -> None:
        self._pretrain, self._train, self._validation = map(_cycle, (pretrain, train, validation))

    def pretrain(self, step: int) -> Any:
        return next(self._pretrain)

    def hyper(self, step: int, k: int) -> Any:
        return next(self._pretrain)

    def train(self, step: int, k: int) -> Any:
        return next(self._train)

    def validation(self, step: int, k: int) -> Any:
        return next(self._validation)


def _cycle(source: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for item in source:
            empty = False
            yield item
        if empty:
            raise ValueError("a source of batches is empty")
