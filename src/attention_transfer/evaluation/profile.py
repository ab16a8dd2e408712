"""What one network's attention is like, block by block: how wide, how far, how unlike its heads are, where it sinks.

Shapes: L blocks, H heads, R query rows, M keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_transfer.evaluation.records import ImageSequence, Rows, forward_records
from attention_transfer.vit import Indices, ViTSpec, describe, select
from attention_transfer.vit.repair import HIGH_NORM

MASS = 0.95
SINK = 10.0
"""A patch is a sink where it gets this many times its even share of the attention, on average over rows and heads."""

_CHUNK = 1 << 17  # elements of a product that stay in a core's cache


@dataclass(frozen=True)
class LayerProfile:
    """Figures of one block's attention: means over images, heads and rows.

    Attributes:
        layer: index of the block.
        entropy: of a row, in nats; at most the logarithm of the number of tokens.
        patches_95: the fewest patches that hold 95 % of what a row gives to patches.
        distance: between a patch and the patches that it attends to, weighted by attention, in patches (Dosovitskiy et
            al. 2021); `None` where no patch's row was looked at.
        diversity: Jensen–Shannon divergence between two heads, mean over pairs, in nats; `None` for a single head.
        prefix_mass: what a row gives to prefix tokens (class, distillation, registers), in [0, 1].
        sink_mass: what a row gives to patches that are sinks, in [0, 1].
        sinks: how many patches of an image are sinks.
        high_norm: share of the patches whose output norm is more than 3 times the median of its image, in [0, 1]:
            artefacts, which hold facts of the whole image in place of their own (Darcet et al. 2024).
    """

    layer: int
    entropy: float
    patches_95: float
    distance: float | None
    diversity: float | None
    prefix_mass: float
    sink_mass: float
    sinks: float
    high_norm: float


def attention_profile(
    network: nn.Module,
    images: ImageSequence,
    *,
    vit: nn.Module | None = None,
    layers: Indices = None,
    rows: Rows = 8,
    batch: int = 8,
    seed: int = 0,
) -> tuple[LayerProfile, ...]:
    """Figures of a network's attention on images, for each block.

    Args:
        network: what is run, in eval mode; a copied student needs its teacher.
        images: any images; they are resized and cropped as in evaluation.
        vit: the vision transformer in it whose attention counts; default the only one.
        layers: which blocks.
        rows: n query rows drawn for each image (an unbiased sample of all), "all", or "class".
        batch: images a forward pass.
        seed: of the draw.

    Raises:
        UserError: there are no images, no such rows or layers, or the network is in training mode.
    """
    vit = network if vit is None else vit
    spec = describe(vit)
    sums, tokens = ProfileSums(spec), slice(0, spec.sequence)
    with torch.no_grad():
        for record in forward_records(
            network, vit, images, rows=rows, tokens=tokens, layers=layers, batch=batch, seed=seed
        ):
            for place in range(len(record.images)):
                for maps, which in record.tiles(place):
                    sums.add(maps, which)
                sums.end_image(record.norms[:, place])
    return sums.profiles(select(layers, spec.depth, "layers"))


class ProfileSums:
    """Running sums of the figures of a `LayerProfile`."""

    def __init__(self, spec: ViTSpec) -> None:
        self.spec = spec
        rows, columns = spec.grid
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        self._distances = torch.cdist(places, places)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._column_sums: Tensor | None = None  # (L, M), of the current image
        self._column_rows = 0

    def add(self, log_p_LHRM: Tensor, rows: Tensor) -> None:
        """Add some rows, with their indices (R,), of the current image."""
        p = log_p_LHRM.exp()
        heads = p.shape[1]
        patches = self.spec.tokens.patches(p.shape[-1])
        on_patches = p[..., patches]
        mass = on_patches.sum(dim=-1, keepdim=True)
        self._add("entropy", entropy(log_p_LHRM))
        largest = on_patches.sort(dim=-1, descending=True).values
        self._add("patches_95", (largest.cumsum(dim=-1) - largest < MASS * mass).sum(dim=-1).to(p.dtype))
        self._add("prefix_mass", p[..., : patches.start].sum(dim=-1))
        from_patch = (rows >= patches.start) & (rows < patches.stop)
        if from_patch.any():
            weights = (on_patches / mass)[:, :, from_patch]
            self._add("distance", (weights * self._distances[rows[from_patch] - patches.start].to(p)).sum(dim=-1))
        if heads > 1:
            pairs = torch.stack([js_pairs(maps, maps, p.shape[2]).sum() for maps in p.flatten(2)])
            self._add("diversity", (pairs / (heads * (heads - 1) * p.shape[2]))[:, None].expand(-1, p.shape[2]))
        columns = p.mean(dim=1).sum(dim=1)
        self._column_sums = columns if self._column_sums is None else self._column_sums + columns
        self._column_rows += p.shape[2]

    def end_image(self, norms_LN: Tensor) -> None:
        """Close an image, all of whose rows were added, with the norms of its tokens in the blocks' outputs."""
        assert self._column_sums is not None
        norms = norms_LN[:, self.spec.tokens.patches(norms_LN.shape[-1])]
        self._add("high_norm", (norms > HIGH_NORM * norms.median(dim=-1, keepdim=True).values).to(norms.dtype))
        got_LM = self._column_sums / self._column_rows
        patches = got_LM[:, self.spec.tokens.patches(got_LM.shape[-1])]
        sinks = patches > SINK / got_LM.shape[-1]
        self._add("sinks", sinks.sum(dim=-1, keepdim=True).to(patches.dtype))
        self._add("sink_mass", (patches * sinks).sum(dim=-1, keepdim=True))
        self._column_sums, self._column_rows = None, 0

    def profiles(self, layers: tuple[int, ...]) -> tuple[LayerProfile, ...]:
        """The means so far, for blocks of these indices."""
        means = {name: (total / self._counts[name]).tolist() for name, total in self._sums.items()}
        optional = {name: means.pop(name, [None] * len(layers)) for name in ("distance", "diversity")}
        figures = means | optional
        return tuple(
            LayerProfile(layer, **{name: values[i] for name, values in figures.items()})
            for i, layer in enumerate(layers)
        )

    def _add(self, name: str, values: Tensor) -> None:
        """Add values, (L, …)."""
        flat = values.flatten(1).double()
        self._sums[name] = self._sums.get(name, torch.zeros(())) + flat.sum(dim=1).cpu()
        self._counts[name] = self._counts.get(name, 0) + flat.shape[1]


def entropy(log_p: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats."""
    return -(log_p.exp() * finite(log_p)).sum(dim=-1)


def finite(log_p: Tensor) -> Tensor:
    """Logarithms in which that of 0 is the least number, so that its product with 0 is 0."""
    return log_p.clamp_min(torch.finfo(log_p.dtype).min)


def js_pairs(p_AK: Tensor, q_BK: Tensor, rows: int) -> Tensor:
    """Jensen–Shannon divergences of all pairs, summed over rows, in nats.

    Args:
        p_AK: A sets of rows that sum to one, each flattened.
        q_BK: B sets.
        rows: rows of a set.

    Returns:
        (A, B), float64. As `s = p + q` sums to 2, the entropy of the middle is `ln 2 - ½ Σ s ln s`: a logarithm an
        element, which is what this costs.
    """
    tiny = torch.finfo(p_AK.dtype).tiny
    width = max(1, _CHUNK // len(q_BK))
    total = p_AK.new_zeros(len(p_AK), len(q_BK), dtype=torch.float64)
    own_p, own_q = (torch.special.entr(x).sum(dim=1, dtype=torch.float64) for x in (p_AK, q_BK))
    for p_AC, q_BC in zip(p_AK.split(width, dim=1), q_BK.split(width, dim=1), strict=True):
        for a, p_C in enumerate(p_AC):
            s_BC = q_BC + p_C
            total[a] += torch.linalg.vecdot(s_BC, s_BC.clamp_min(tiny).log_())
    divergences: Tensor = rows * math.log(2) - (total + own_p[:, None] + own_q) / 2
    return divergences.clamp_min(0)
