"""Which images a process reads in which order, and what their augmentation is drawn from.

All of it is a function of the seed and the epoch, so that a run that is resumed draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, DistributedSampler, Sampler, TensorDataset

from attention_transfer.data import class_balanced_weights
from attention_transfer.engine.seeds import drawn_from, seed_everything
from attention_transfer.errors import UserError
from attention_transfer.objectives import Images


class Draw(NamedTuple):
    """An image, and what its augmentation is drawn from."""

    image: int
    seeds: tuple[int, int, int]


class SeededSampler(DistributedSampler[Any]):
    """Makes all randomness of an epoch a function of the seed and the epoch: order, augmentation, masks, dropout.

    So a resumed run draws what the uninterrupted one would have drawn, with no generator states to save.

    Args:
        images: what is drawn from; all processes have the same order.
        seed: of the order and of everything else.
        weights: of each image, float64 (n,), to draw by with replacement; `None` shuffles.
        process: rank of this process; others than the first draw other dropout.
    """

    def __init__(self, images: Images, *, seed: int, weights: Tensor | None = None, process: int = 0) -> None:
        super().__init__(images, num_replicas=1, rank=0, shuffle=True, seed=seed)
        # The loader draws the seeds of its workers from here, and not from the generator that the network draws from.
        self.generator = torch.Generator()
        self.weights = weights
        self.process = process

    def __iter__(self) -> Iterator[int]:
        if self.weights is None:
            return super().__iter__()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        drawn = torch.multinomial(self.weights, len(self.weights), replacement=True, generator=generator)
        return iter(drawn.tolist())

    def set_epoch(self, epoch: int) -> None:
        """Seed torch, numpy, python and the loader's workers for the epoch."""
        super().set_epoch(epoch)
        seed = self.seed * 1_000_003 + epoch
        self.generator.manual_seed(seed)
        seed_everything((seed + self.process * 1_000_000_007) % 2**32)


@dataclass(frozen=True)
class Share:
    """How many images of a batch are a process's, and how many all processes have together."""

    own: int
    whole: int


def share_of_batch(number: int, *, images: int, batch_size: int, process: int = 0, processes: int = 1) -> Share:
    """Of the batch with this number in its epoch."""
    whole = min(batch_size, images - number * batch_size)
    return Share(len(range(process, whole, processes)), whole)


class ShareOfBatches(BatchSampler):
    """Batches of one order, cut so that the shares of all processes together are the batch of one.

    A process that gets no image of a short last batch reads one all the same, because all must take part in the step;
    its share says that it does not count.

    Args:
        sampler: the order, the same in all processes.
        batch_size: images of all processes.
        process: rank of this process.
        processes: how many there are.
        seeded: yield `Draw`s, for `SeededItems`, instead of indices.
    """

    def __init__(
        self, sampler: SeededSampler, batch_size: int, *, process: int = 0, processes: int = 1, seeded: bool = False
    ) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self.process = process
        self.processes = processes
        self.seeded = seeded

    def __iter__(self) -> Iterator[Any]:
        order = self.sampler
        assert isinstance(order, SeededSampler)
        for number, batch in enumerate(super().__iter__()):
            draws = [
                Draw(index, (order.seed % 2**32, order.epoch, number * self.batch_size + place))
                if self.seeded
                else index
                for place, index in enumerate(batch)
            ]
            yield draws[self.process :: self.processes] or draws[:1]


class SeededItems(Dataset[tuple[Tensor, ...]]):
    """Images whose augmentation depends on seed, epoch and place alone, whichever process reads them."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, ...]:
        with drawn_from(*draw.seeds):
            return self.images[draw.image]


class Unrepeated(Sampler[int]):
    """Every image once over all processes, in order; some processes may have one image fewer than others."""

    def __init__(self, images: Images, *, process: int = 0, processes: int = 1) -> None:
        self._own = range(process, len(images), processes)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._own)

    def __iter__(self) -> Iterator[int]:
        return iter(self._own)


class EqualBatches(Sampler[list[int]]):
    """Every image once over all processes, in order, by as many batches in each process: none waits for another.

    Args:
        images: what is read.
        batch_size: images of a process, at most.
        process: rank of this process.
        processes: how many there are.

    Raises:
        UserError: there are fewer images than processes.
    """

    def __init__(self, images: Images, batch_size: int, *, process: int, processes: int) -> None:
        total = len(images)  # type: ignore[arg-type]
        if total < processes:
            raise UserError(
                f"{total} images can't be evaluated by {processes} devices that need each other (strategy fsdp); "
                "take fewer devices, or strategy ddp"
            )
        number = -(-total // (batch_size * processes))
        self._own = [whole[process::processes].tolist() for whole in np.array_split(np.arange(total), number)]

    def __len__(self) -> int:
        return len(self._own)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._own)


def class_weights(images: Images) -> Tensor:
    """Of each image, such that all classes are drawn equally often, float64 (n,).

    Raises:
        UserError: the images do not say their labels.
    """
    labels = images.tensors[1] if isinstance(images, TensorDataset) else getattr(images, "labels", None)
    if labels is None:
        raise UserError("recipe.balanced needs images with labels, which these do not have; leave it out")
    return torch.from_numpy(class_balanced_weights(np.asarray(labels)))
