"""Centred kernel alignment of two networks' block outputs, debiased, from minibatches.

Sources: Nguyen, Raghu and Kornblith, "Do wide and deep networks learn the same things?", ICLR 2021 (minibatches);
Song et al., "Feature selection via dependence maximization", JMLR 2012 (the unbiased estimator of HSIC).
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 4
"""Images that a batch must have for the unbiased estimator to be defined."""


class MinibatchCKA:
    """Running sums of HSIC between the blocks of two networks: memory does not grow with the number of images."""

    def __init__(self) -> None:
        self._ab: Tensor | float = 0.0
        self._aa: Tensor | float = 0.0
        self._bb: Tensor | float = 0.0

    def add(self, grams_a: Tensor, grams_b: Tensor) -> None:
        """Add a batch of n images; one of fewer than four adds nothing.

        Args:
            grams_a: inner products of the images' features in each block of one network, (LA, n, n).
            grams_b: the same of the other network, (LB, n, n).
        """
        if grams_a.shape[-1] < LEAST:
            return
        self._ab = self._ab + hsic(grams_a[:, None], grams_b[None])
        self._aa = self._aa + hsic(grams_a, grams_a)
        self._bb = self._bb + hsic(grams_b, grams_b)

    def result(self) -> Tensor | None:
        """CKA of each pair of blocks, (LA, LB), 1 for equal outputs; `None` where no batch had four images."""
        if not (isinstance(self._ab, Tensor) and isinstance(self._aa, Tensor) and isinstance(self._bb, Tensor)):
            return None
        return self._ab / (self._aa[:, None] * self._bb[None]).sqrt()


def hsic(k: Tensor, l: Tensor) -> Tensor:
    """The unbiased estimator of the Hilbert–Schmidt independence criterion of two Gram matrices, (…, n, n) → (…).

    `[tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1 / ((n-1)(n-2)) - 2·1ᵀK̃L̃1 / (n-2)] / (n(n-3))`, where the tilde sets the diagonal to zero.
    """
    n = k.shape[-1]
    off_diagonal = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, l = k * off_diagonal, l * off_diagonal
    rows_k, rows_l = k.sum(dim=-1), l.sum(dim=-1)
    product = rows_k.sum(dim=-1) * rows_l.sum(dim=-1) / ((n - 1) * (n - 2))
    return ((k * l).sum(dim=(-2, -1)) + product - 2 * (rows_k * rows_l).sum(dim=-1) / (n - 2)) / (n * (n - 3))
