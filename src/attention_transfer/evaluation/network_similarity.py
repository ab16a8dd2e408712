"""How alike two networks are: distances between their attention maps, and between their block outputs.

Shapes: LA, LB blocks and HA, HB heads of the two networks, R query rows, M keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.evaluation.cka import MinibatchCKA
from attention_transfer.evaluation.profile import (
    LayerProfile,
    ProfileSums,
    entropy,
    finite,
    js_pairs,
)
from attention_transfer.evaluation.records import ImageSequence, Rows, forward_records
from attention_transfer.vit import Indices, ViTSpec, describe, select

Matrix = tuple[tuple[float, ...], ...]
"""A figure for each block of the first network (rows) and each of the second (columns)."""


@dataclass(frozen=True)
class HeadMatchings:
    """A divergence between the maps of each pair of blocks, in nats, under four ways to match heads.

    Heads are matched on the mean over images and rows, so that a head has one partner. Each figure is the mean over
    pairs of heads.

    Attributes:
        same: heads of the same index; `None` where the networks have unequal numbers of heads.
        best: each head of the first network with the nearest of the second, which several may share.
        optimal: the assignment, each head at most once, with the least sum (Kuhn 1955).
        averaged: maps are averaged over heads first.
    """

    same: Matrix | None
    best: Matrix
    optimal: Matrix
    averaged: Matrix


@dataclass(frozen=True)
class Drift:
    """How far a run is from another network after an epoch; a figure for each of its blocks.

    Attributes:
        epoch: counted from 1.
        js: Jensen–Shannon divergence of heads of the same index, in nats, from the block at the same relative depth;
            `None` where the numbers of heads differ.
        cka: debiased CKA of the outputs of the same blocks; `None` where no batch had four images.
    """

    epoch: int
    js: tuple[float, ...] | None
    cka: tuple[float, ...] | None


@dataclass(frozen=True)
class Similarity:
    """How alike two networks are on the same images.

    Attributes:
        images: how many images were run.
        rows: query rows of an image that were compared.
        tokens: "all", or "patches" where the networks' special tokens differ, so that only attention between patches
            could be compared, each row made to sum to one.
        layers_a: blocks of the first network.
        layers_b: blocks of the second.
        js: Jensen–Shannon divergence; at most ln 2.
        kl: Kullback–Leibler divergence of the second network's maps from the first's, KL(A ‖ B).
        cka: debiased CKA of the block outputs, 1 for equal ones; `None` where no batch had four images.
        profile_a: figures of the first network's attention.
        profile_b: figures of the second's.
        drift: of the first network over its kept epochs, where that was asked for; all else is of the last one then.
    """

    images: int
    rows: int
    tokens: Literal["all", "patches"]
    layers_a: tuple[int, ...]
    layers_b: tuple[int, ...]
    js: HeadMatchings
    kl: HeadMatchings
    cka: Matrix | None
    profile_a: tuple[LayerProfile, ...]
    profile_b: tuple[LayerProfile, ...]
    drift: tuple[Drift, ...] = ()

    def by_depth(self, matrix: Matrix) -> tuple[float, ...]:
        """A figure for each block of the first network, with the block of the second at the same relative depth."""
        last = max(1, len(self.layers_a) - 1)
        return tuple(row[round(i * (len(row) - 1) / last)] for i, row in enumerate(matrix))

    def after(self, epoch: int) -> Drift:
        """The figures that follow a training, where the first network has the weights of an epoch."""
        js, cka = (None if matrix is None else self.by_depth(matrix) for matrix in (self.js.same, self.cka))
        return Drift(epoch, js, cka)


@torch.no_grad()
def similarity(
    a: nn.Module,
    b: nn.Module,
    images: ImageSequence,
    *,
    vit_a: nn.Module | None = None,
    vit_b: nn.Module | None = None,
    layers: Indices = None,
    rows: Rows = 8,
    batch: int = 8,
    seed: int = 0,
) -> Similarity:
    """Compare the attention and the block outputs of two networks on the same images.

    Memory does not grow with the number of images; 16 rows of each block's maps are held at a time.

    Args:
        a: one network, in eval mode; each gets the images in its own size and normalisation.
        b: another, with the same patch grid. A network that was fine-tuned from `a` shows its drift.
        images: any images; they are resized and cropped as in evaluation.
        vit_a: the vision transformer in `a` that counts; default the only one.
        vit_b: the same in `b`.
        layers: which blocks of both.
        rows: n query rows drawn for each image (an unbiased sample of all, the same in both), "all", or "class".
        batch: images a forward pass, which is also the minibatch of CKA.
        seed: of the draw.

    Raises:
        UserError: the patch grids differ, there are no images, rows or layers as asked for, or a network is in training
            mode.
    """
    vit_a, vit_b = vit_a or a, vit_b or b
    spec_a, spec_b = describe(vit_a), describe(vit_b)
    if spec_a.grid != spec_b.grid:
        grids = " and ".join("×".join(map(str, spec.grid)) for spec in (spec_a, spec_b))
        raise UserError(f"the networks see {grids} patches, so that their maps can't be compared; choose image_size")
    alike = spec_a.tokens == spec_b.tokens
    shared_a, shared_b = (_shared(spec, everything=alike) for spec in (spec_a, spec_b))
    sums_a, sums_b, pairs, cka = ProfileSums(spec_a), ProfileSums(spec_b), _PairSums(), MinibatchCKA()
    run = partial(forward_records, images=images, rows=rows, layers=layers, batch=batch, seed=seed)
    for seen_a, seen_b in zip(run(a, vit_a, tokens=shared_a), run(b, vit_b, tokens=shared_b), strict=True):
        cka.add(seen_a.grams, seen_b.grams.to(seen_a.grams.device))
        for place in range(len(seen_a.images)):
            for (maps_a, rows_a), (maps_b, rows_b) in zip(seen_a.tiles(place), seen_b.tiles(place), strict=True):
                sums_a.add(maps_a, rows_a)
                sums_b.add(maps_b, rows_b)
                if alike:
                    pairs.add(maps_a, maps_b.to(maps_a))
                else:
                    among_a, among_b = maps_a[..., shared_a], maps_b[..., shared_b].to(maps_a)
                    pairs.add(among_a.log_softmax(dim=-1), among_b.log_softmax(dim=-1))
            sums_a.end_image(seen_a.norms[:, place])
            sums_b.end_image(seen_b.norms[:, place])
    js, kl = pairs.result()
    layers_a, layers_b = (select(layers, spec.depth, "layers") for spec in (spec_a, spec_b))
    alignment = cka.result()
    return Similarity(
        images=len(images),
        rows=pairs.rows // len(images),
        tokens="all" if alike else "patches",
        layers_a=layers_a,
        layers_b=layers_b,
        js=js,
        kl=kl,
        cka=None if alignment is None else _matrix(alignment.cpu().numpy()),
        profile_a=sums_a.profiles(layers_a),
        profile_b=sums_b.profiles(layers_b),
    )


def match_heads(divergence: NDArray[np.float64], averaged: NDArray[np.float64]) -> HeadMatchings:
    """The four matchings from divergences between all heads of all blocks.

    Args:
        divergence: means over images and rows, (LA, HA, LB, HB).
        averaged: the same of maps that were averaged over heads, (LA, LB).
    """
    pairs = divergence.transpose(0, 2, 1, 3)
    optimal = [[block[linear_sum_assignment(block)].mean() for block in row] for row in pairs]
    equal = pairs.shape[2] == pairs.shape[3]
    return HeadMatchings(
        same=_matrix(np.diagonal(pairs, axis1=2, axis2=3).mean(axis=-1)) if equal else None,
        best=_matrix(pairs.min(axis=3).mean(axis=2)),
        optimal=_matrix(np.array(optimal)),
        averaged=_matrix(averaged),
    )


class _PairSums:
    """Sums over rows of the divergences between all pairs of heads, and between maps averaged over heads."""

    def __init__(self) -> None:
        self.rows = 0
        self._heads = 1, 1
        self._sums: dict[str, Tensor] = {}

    def add(self, log_a: Tensor, log_b: Tensor) -> None:
        """Add rows of both networks, (LA, HA, R, M) and (LB, HB, R, M)."""
        self._heads = log_a.shape[1], log_b.shape[1]
        rows = log_a.shape[2]
        self.rows += rows
        for name, one, other in (
            ("heads", log_a.flatten(0, 1), log_b.flatten(0, 1)),
            ("averaged", _averaged(log_a), _averaged(log_b)),
        ):
            p, q = one.exp().flatten(1), other.exp().flatten(1)
            kl = -entropy(one).sum(dim=1, keepdim=True) - p @ finite(other).flatten(1).T
            for key, value in ((f"js {name}", js_pairs(p, q, rows)), (f"kl {name}", kl.double().clamp_min(0))):
                self._sums[key] = self._sums.get(key, torch.zeros(())) + value.cpu()

    def result(self) -> tuple[HeadMatchings, HeadMatchings]:
        """Jensen–Shannon and Kullback–Leibler divergences, means over rows."""
        heads_a, heads_b = self._heads
        means = {key: (total / self.rows).numpy() for key, total in self._sums.items()}
        js, kl = (
            match_heads(means[f"{name} heads"].reshape(-1, heads_a, len(averaged.T), heads_b), averaged)
            for name in ("js", "kl")
            for averaged in [means[f"{name} averaged"]]
        )
        return js, kl


def _averaged(log_p_LHRM: Tensor) -> Tensor:
    """Logarithms of the maps' means over heads, (L, R, M)."""
    return log_p_LHRM.logsumexp(dim=1) - math.log(log_p_LHRM.shape[1])


def _shared(spec: ViTSpec, *, everything: bool) -> slice:
    """The tokens between which attention is compared."""
    return slice(0, spec.sequence) if everything else spec.tokens.patches(spec.sequence)


def _matrix(values: NDArray[np.float64]) -> Matrix:
    return tuple(tuple(map(float, row)) for row in values)
