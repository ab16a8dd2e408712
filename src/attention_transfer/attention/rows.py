"""Distances between two attentions, row by row, from their logits.

Every function takes the logits of a student and of a teacher, (…, N, M), and gives one value for each query row,
(…, N). Nothing but torch's own differentiable operations: these are what every faster version is held against, and what
the tiled version runs on a tile of rows.

A row of which all keys are masked (logits of -inf) attends to nothing: its distance is 0, and so is its gradient.
A key that is masked on both sides counts as equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RowDistance = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """`-Σ_j P_t[j] · log P_s[j]`, in nats."""
    logits_s, logits_t, alive = _alive(logits_s, logits_t)
    return _kept(_expected(logits_t.softmax(dim=-1), logits_s.log_softmax(dim=-1)).neg(), alive)


def kl(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """`Σ_j P_t[j] · (log P_t[j] - log P_s[j])`, in nats."""
    logits_s, logits_t, alive = _alive(logits_s, logits_t)
    log_p_s, log_p_t = logits_s.log_softmax(dim=-1), logits_t.log_softmax(dim=-1)
    p_t = log_p_t.exp()
    return _kept(_expected(p_t, log_p_t) - _expected(p_t, log_p_s), alive)


def js(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Jensen–Shannon divergence, in nats: the mean of both sides' KL divergence from their middle; at most ln 2."""
    logits_s, logits_t, alive = _alive(logits_s, logits_t)
    log_p_s, log_p_t = logits_s.log_softmax(dim=-1), logits_t.log_softmax(dim=-1)
    both_masked = log_p_s.isneginf() & log_p_t.isneginf()
    a, b = log_p_s.masked_fill(both_masked, 0.0), log_p_t.masked_fill(both_masked, 0.0)
    middle = torch.logaddexp(a, b) - torch.log(torch.tensor(2.0, dtype=a.dtype))
    p_s, p_t = log_p_s.exp(), log_p_t.exp()
    halves = _expected(p_s, log_p_s) - _expected(p_s, middle) + _expected(p_t, log_p_t) - _expected(p_t, middle)
    return _kept(halves / 2, alive)


def mse(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Squared distance of the maps, `Σ_j (P_s[j] - P_t[j])²`."""
    logits_s, logits_t, alive = _alive(logits_s, logits_t)
    return _kept((logits_s.softmax(dim=-1) - logits_t.softmax(dim=-1)).square().sum(dim=-1), alive)


def logit_l2(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Squared distance of the logits, `Σ_j (S_s[j] - S_t[j])²`."""
    logits_s, logits_t, alive = _alive(logits_s, logits_t)
    both_masked = logits_s.isneginf() & logits_t.isneginf()
    # Both operands are filled, not their difference: the gradient of inf - inf would be NaN.
    difference = logits_s.masked_fill(both_masked, 0.0) - logits_t.masked_fill(both_masked, 0.0)
    return _kept(difference.square().sum(dim=-1), alive)


def softmax(logits: Tensor) -> Tensor:
    """Attention maps; a row of which all keys are masked is 0."""
    dead = logits.isneginf().all(dim=-1, keepdim=True)
    return logits.masked_fill(dead, 0.0).softmax(dim=-1).masked_fill(dead, 0.0)


def _expected(p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_j p_j · log q_j over the last dimension, with 0 · (-inf) = 0."""
    return (p * log_q.masked_fill(p == 0, 0.0)).sum(dim=-1)


def _alive(logits_s: Tensor, logits_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in which rows that are masked on one side are uniform, and which rows are not."""
    alive = ~(logits_s.isneginf().all(dim=-1) | logits_t.isneginf().all(dim=-1))
    dead = ~alive[..., None]
    return logits_s.masked_fill(dead, 0.0), logits_t.masked_fill(dead, 0.0), alive


def _kept(rows: Tensor, alive: Tensor) -> Tensor:
    return torch.where(alive, rows, torch.zeros_like(rows))
