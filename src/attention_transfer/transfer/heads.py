"""Which head of a teacher is most like which head of a student."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

from attention_transfer.vit import POOL


class HeadPairs(nn.Module):
    """The teacher's head of each of the student's, layer by layer; found once and saved with the student.

    Args:
        depth: blocks of the student.
        heads: heads of a block of the student.
    """

    pairs: Tensor

    def __init__(self, depth: int, heads: int) -> None:
        super().__init__()
        self.register_buffer("pairs", torch.full((depth, heads), -1))
        self._known: set[int] = set()

    def missing(self, layers: Iterable[int]) -> list[int]:
        """The layers, of those named, whose pairs have neither been found nor loaded."""
        asked = {layer for layer in layers if layer != POOL} - self._known
        self._known |= {layer for layer in asked if bool((self.pairs[layer] >= 0).all())}  # they may have been loaded
        return sorted(asked - self._known)

    def set(self, layer: int, divergences_ST: Tensor) -> None:
        """Pair the heads of a layer; every process of a distributed run finds the same pairs."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(divergences_ST)
        self.pairs[layer] = matched_heads(divergences_ST)
        self._known.add(layer)

    def of(self, layer: int) -> Tensor | None:
        """The pairs of a layer, (H_s,); `None` for the pooling head, which keeps its order."""
        return None if layer == POOL else self.pairs[layer]


def head_divergences(maps_s_BHNM: Tensor, maps_t_BHNM: Tensor) -> Tensor:
    """Mean Jensen–Shannon divergence between each head's maps of a student and each of a teacher.

    Args:
        maps_s_BHNM: the student's maps, (B, H_s, N, M); rows sum to one.
        maps_t_BHNM: the teacher's maps, (B, H_t, N, M), over the same tokens.

    Returns:
        Nats, the mean over images and query rows, (H_s, H_t), from 0 (alike) to ln 2.
    """
    entropy_s, entropy_t = _entropy(maps_s_BHNM), _entropy(maps_t_BHNM)
    columns = []
    for head in range(maps_t_BHNM.shape[1]):  # one teacher head at a time: all pairs at once would not fit
        middle = (maps_s_BHNM + maps_t_BHNM[:, head : head + 1]) / 2
        columns.append(_entropy(middle) - (entropy_s + entropy_t[head]) / 2)
    return torch.stack(columns, dim=1).clamp_min(0.0)


def matched_heads(divergences_ST: Tensor) -> Tensor:
    """The teacher's head for each of the student's, by the least sum of divergences.

    Where the teacher has at least as many heads, each of them is taken at most once (linear sum assignment); where it
    has fewer, each head of the student takes the one that is most like it.

    Returns:
        Indices of the teacher's heads, (H_s,), on the device of the input.
    """
    from scipy.optimize import linear_sum_assignment

    student, teacher = divergences_ST.shape
    if teacher < student:
        return divergences_ST.argmin(dim=1)
    _, columns = linear_sum_assignment(divergences_ST.cpu().double().numpy())
    return torch.as_tensor(columns, device=divergences_ST.device)


def _entropy(maps_BHNM: Tensor) -> Tensor:
    """Entropy of the rows in nats, mean over images and rows, (H,)."""
    rows_BHN: Tensor = torch.special.entr(maps_BHNM).sum(dim=-1)
    return rows_BHN.mean(dim=(0, 2))
