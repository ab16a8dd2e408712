"""Stage c: how fast are the kernels alone, and which part of what this card can do do they reach?

For cross-entropy alone and for attention with its cross-entropy, forward and backward are timed by events: bfloat16,
one image, 16 heads of 64 (4 at 16,384 tokens, where formed maps of 16 fit no card). Beside every route of the library
stand maps that are formed in the same dtype and PyTorch's own attention without any loss. In each repeat all of them
run, in random order; a figure is a median over repeats, a gain the median of the repeats' ratios of the maps' time to a
way's. `graph_ms`, in rows of its own for the smallest size, is a replay of both passes as one graph, without gaps
between kernels. `peak_bytes` is what both passes take at most beyond the operands, results and gradients included.

The limit is measured in the same run: the rate of a large matrix product and the bandwidth of a large copy (bytes read
and written). `forward_limit` is the larger of the fewest operations over that rate and the fewest bytes over that
bandwidth, as a share of the time that was taken: 1 is all that the card can do.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.attention import AttentionCall, attention_logits
from attention_transfer.experiments.steps import ROUTES
from benchmarks.gpu import card as cards
from benchmarks.gpu.card import Card
from benchmarks.gpu.report import Report, Row, why_not
from benchmarks.gpu.right import difference
from benchmarks.gpu.routes import Size, check, functions, operands

Results = tuple[Tensor, ...]
Run = Callable[[AttentionCall, Tensor, AttentionCall], Results]
Operands = tuple[AttentionCall, Tensor, AttentionCall]

SIZES = (Size(4096, 4096, heads=16), Size(16384, 16384, heads=4), Size(1024, 1024, heads=16))
SMALL = (Size(9, 9, 16, 16, 16, heads=1),)
ERROR = 1.5e-2  # of the norm, in bfloat16
# Products of N·M·D that no fused kernel can do without, forward and backward: logits of both sides, and P V, dQ, dK, …
PRODUCTS = {"cross-entropy": (2, 4), "attention and cross-entropy": (3, 6), "attention": (2, 5)}
# Tensors of N·D that must be read or written: operands, output, incoming and outgoing gradients.
TENSORS = {"cross-entropy": (4, 6), "attention and cross-entropy": (6, 10), "attention": (4, 8)}


def run(card: Card, report: Report) -> None:
    """The limits of the card, then every operator and size."""
    torch.manual_seed(0)
    rate, bandwidth = matrix_rate(card), copy_bandwidth(card)
    repeats = 1 if card.rehearsed else 20
    report.note(matrix_tflops=rate / 1e12, copy_gbytes_per_second=bandwidth / 1e9, dtype="bfloat16", repeats=repeats)
    sizes = SMALL if card.rehearsed else SIZES
    for size in sizes:
        for operator, ways in OPERATORS.items():
            for name, row in measured(card, ways, size, repeats, report).items():
                kind = "attention" if name == ALONE else operator
                case = {"operator": operator, "way": name, "tokens": size.n, "heads": size.heads}
                report.add(case | limits(row, kind, size, rate, bandwidth))
            card.clear()
    inputs = operands(sizes[-1], torch.bfloat16, card.device)
    for operator, ways in OPERATORS.items():  # last: a way that can't be a graph may leave the card unusable
        for name, way in ways.items():
            case = {"operator": operator, "way": name, "tokens": sizes[-1].n, "heads": sizes[-1].heads}
            report.row(case, partial(_graph, card, way, inputs))


def matrix_rate(card: Card) -> float:
    """Operations a second of a large bfloat16 matrix product on random data."""
    n = 64 if card.rehearsed else 8192
    a, b = (torch.randn(n, n, device=card.device).bfloat16() for _ in range(2))
    return 2 * n**3 / (1e-3 * statistics.median(card.events(*[lambda: a @ b] * 12)[2:]))


def copy_bandwidth(card: Card) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.empty(1 << (20 if card.rehearsed else 32), dtype=torch.uint8, device=card.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (1e-3 * statistics.median(card.events(*[lambda: target.copy_(source)] * 8)[2:]))


def _loss(route: str) -> Run:
    def loss(s: AttentionCall, v: Tensor, t: AttentionCall) -> Results:
        check(route, "attention_cross_entropy", s, t, v)
        return (functions(route).cross_entropy(s, t),)

    return loss


def _both(route: str) -> Run:
    def both(s: AttentionCall, v: Tensor, t: AttentionCall) -> Results:
        check(route, "distilled_attention", s, t, v)
        return functions(route).distilled_mean(s, v, t)

    return both


def _loss_by_maps(s: AttentionCall, _: Tensor, t: AttentionCall) -> Results:
    logits_s, logits_t = attention_logits(s.q, s.k), attention_logits(t.q, t.k)
    return (-(logits_t.float().softmax(-1) * logits_s.float().log_softmax(-1)).sum(-1),)


def _both_by_maps(s: AttentionCall, v: Tensor, t: AttentionCall) -> Results:
    logits_s, logits_t = attention_logits(s.q, s.k), attention_logits(t.q, t.k)
    ce_BHN = -(logits_t.float().softmax(-1) * logits_s.float().log_softmax(-1)).sum(-1)
    return logits_s.softmax(-1) @ v, ce_BHN.mean()


def _attention(s: AttentionCall, v: Tensor, _: AttentionCall) -> Results:
    return (F.scaled_dot_product_attention(s.q, s.k, v),)


MAPS, ALONE = "maps", "attention alone"
OPERATORS: dict[str, dict[str, Run]] = {
    "attention and cross-entropy": {
        MAPS: _both_by_maps,
        ALONE: _attention,
        **{route: _both(route) for route in ROUTES},
    },
    "cross-entropy": {MAPS: _loss_by_maps, **{route: _loss(route) for route in ROUTES}},
}


def measured(card: Card, ways: dict[str, Run], size: Size, repeats: int, report: Report) -> dict[str, Row]:
    """A row for every way, or why there is none."""
    inputs = operands(size, torch.bfloat16, card.device)
    rows: dict[str, Row] = {}
    exact = None
    for name, way in ways.items():
        if report.time_left() <= 0:
            rows[name] = {"left_out": "the stage's time was up"}
            continue
        try:
            results = [x.detach() for x in way(*inputs)]  # compiles, and warms up
            exact = results if name == MAPS else exact
            for _ in range(0 if card.rehearsed else 2):
                _passes(way, inputs)
            rows[name] = {"peak_bytes": card.peak(lambda way=way: _passes(way, inputs))}  # type: ignore[misc]
        except Exception as error:
            if cards.is_lost(error):
                raise
            rows[name] = why_not(error)  # also what Triton raises, which has a class of errors of its own
            card.clear()
            continue
        if name != ALONE and exact is not None:
            errors = [difference(a, b) for a, b in zip(results, exact, strict=True)]
            rows[name] |= {"error": max(errors), "ok": max(errors) <= ERROR}
    running = [name for name in ways if "peak_bytes" in rows[name]]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
    for _ in range(repeats):
        for name in random.sample(running, len(running)):
            times[name].append(_timed(card, ways[name], inputs))
    for name in running:
        for index, part in enumerate(("forward", "backward")):
            rows[name][f"{part}_ms"] = statistics.median(pair[index] for pair in times[name])
            if MAPS in running:
                pairs = zip(times[MAPS], times[name], strict=True)
                rows[name][f"{part}_gain"] = statistics.median(maps[index] / own[index] for maps, own in pairs)
    return rows


def limits(row: Row, operator: str, size: Size, rate: float, bandwidth: float) -> Row:
    """A row, with the share of the card's own limit that both passes reach."""
    for index, part in enumerate(("forward", "backward")):
        if f"{part}_ms" in row:
            operations = 2 * PRODUCTS[operator][index] * size.heads * size.n * size.m * size.d_s
            moved = 2 * TENSORS[operator][index] * size.heads * size.n * size.d_s
            row[f"{part}_limit"] = 1e3 * max(operations / rate, moved / bandwidth) / row[f"{part}_ms"]
    return row


def _passes(way: Run, inputs: Operands) -> None:
    s, v, _ = inputs
    results = way(*inputs)
    gradients = [torch.ones_like(result) for result in results]
    torch.autograd.grad(results, [s.q, s.k, v], gradients, allow_unused=True)


def _timed(card: Card, way: Run, inputs: Operands) -> tuple[float, float]:
    """Milliseconds of the forward and of the backward pass."""
    s, v, _ = inputs
    results: list[Results] = []

    def backward() -> None:
        gradients = [torch.ones_like(result) for result in results[0]]
        torch.autograd.grad(results[0], [s.q, s.k, v], gradients, allow_unused=True)

    forward_ms, backward_ms = card.events(lambda: results.append(way(*inputs)), backward)
    return forward_ms, backward_ms


def _graph(card: Card, way: Run, inputs: Operands) -> Row:
    """Milliseconds of both passes as one graph; a way that looks at values on the host can't be one."""
    replay = card.graph(lambda: _passes(way, inputs))
    return {"graph_ms": statistics.median(card.events(*[replay] * (1 if card.rehearsed else 5)))}
