"""Fused attention losses on a GPU: right, tuned, and how fast against materialised maps.

    PYTHONPATH=src python benchmarks/gpu_kernels.py [--tokens 4096 16384] [--repeats N] [--out FILE]

First every kernel is held against the float64 reference; a mistake ends the script. Then, for the cross-entropy alone
and for attention and cross-entropy in one, forward and backward are timed with CUDA events: bfloat16, 16 heads of 64,
one image. Beside the fused kernels stand the materialised maps in the same dtype, tiles of rows that are recomputed,
and PyTorch's own attention: alone, as the floor of the second operator, and with the fused cross-entropy after it.
In every repeat all of them run, in random order; a figure is a median over repeats, a ratio the median of the repeats'
ratios. The first call of a fused kernel tunes it, before anything is timed. Peak memory is what a forward and a
backward pass allocate beyond the operands, results and gradients included.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.attention import rows, triton_kernels
from attention_transfer.attention.tiles import Side, in_tiles

Results = tuple[Tensor, ...]
Run = Callable[[Side, Tensor, Side], Results]

HEADS, WIDTH = 16, 64
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # of the norm of the difference
PRODUCTS = {"cross-entropy": (2, 6), "attention and cross-entropy": (3, 9)}  # of N·M·D, fused, forward and backward


def main() -> None:
    """Check, tune, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    reason = triton_kernels.available()
    if reason or not torch.cuda.is_available():
        raise SystemExit(reason or "there is no CUDA device")
    torch.manual_seed(0)
    errors = checked()
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "heads": HEADS,
        "width": WIDTH,
        "dtype": "bfloat16",
        "repeats": arguments.repeats,
        "errors": errors,
        "rows": [],
    }
    for tokens in arguments.tokens:
        for operator, ways in WAYS.items():
            report["rows"] += measured(operator, ways, tokens, arguments.repeats)
            show(report["rows"][-len(ways) :])
    report["configurations"] = configurations()
    for line in report["configurations"]:
        print(line)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def operands(n: int, m: int, width: int, width_t: int, dtype: torch.dtype) -> tuple[Side, Tensor, Side]:
    """Sides and values in the memory layout of a model, tokens before heads; the student's require gradients."""
    q, k, v = (
        torch.randn(1, tokens, HEADS, width, device="cuda").to(dtype).transpose(1, 2).requires_grad_()
        for tokens in (n, m, m)
    )
    q_t, k_t = (torch.randn(1, tokens, HEADS, width_t, device="cuda").to(dtype).transpose(1, 2) for tokens in (n, m))
    return Side(q, k, None, None), v, Side(q_t, k_t, None, None)


def checked() -> dict[str, float]:
    """Relative errors of values and gradients, all of them under the limits."""
    errors: dict[str, float] = {}
    cases = [(197, 197, 64, 64), (130, 259, 80, 64)]
    for n, m, width, width_t in cases:
        for dtype, limit in LIMITS.items():
            for masked in (False, True):
                s, v, t = operands(n, m, width, width_t, dtype)
                if masked:
                    mask = torch.randn(HEADS, n, m, device="cuda").masked_fill(
                        torch.rand(n, m, device="cuda") < 0.1, -math.inf
                    )
                    mask[:, 3] = -math.inf
                    s, t = s._replace(mask=mask), t._replace(mask=~mask[:1].isneginf())
                name = f"{n}x{m}x{width} {str(dtype).removeprefix('torch.')}{' masked' if masked else ''}"
                errors[name] = compared(s, v, t)
                print(f"{name}: largest relative error {errors[name]:.1e}", flush=True)
                if not errors[name] <= limit:
                    raise SystemExit(f"wrong: the limit is {limit:.1e}")
    return errors


def compared(s: Side, v: Tensor, t: Side) -> float:
    """The largest relative error of a value or gradient of all three functions."""
    q_64, k_64, v_64 = (x.detach().double().requires_grad_() for x in (s.q, s.k, v))
    exact_s, exact_t = Side(q_64, k_64, s.scale, s.mask), Side(t.q.double(), t.k.double(), t.scale, t.mask)
    logits_s, logits_t = exact_s.logits(), exact_t.logits()
    out_64, ce_64 = rows.softmax(logits_s) @ v_64, rows.cross_entropy(logits_s, logits_t)
    kl_64 = rows.kl(logits_s, logits_t)
    g, d_out = torch.randn_like(ce_64), torch.randn_like(out_64)
    out, ce = triton_kernels.distilled(s, v, t, tune=False)
    alone, kl = triton_kernels.cross_entropy(s, t, tune=False), triton_kernels.kl(s, t, tune=False)
    pairs = [(out, out_64), (ce, ce_64), (alone, ce_64), (kl, kl_64)]
    both_64 = torch.autograd.grad([out_64, ce_64], [q_64, k_64, v_64], [d_out, g], retain_graph=True)
    both = torch.autograd.grad([out, ce], [s.q, s.k, v], [d_out.to(out.dtype), g.float()])
    loss_64 = torch.autograd.grad(ce_64, [q_64, k_64], g)
    loss = torch.autograd.grad(alone, [s.q, s.k], g.float())
    pairs += [*zip(both, both_64, strict=True), *zip(loss, loss_64, strict=True)]
    return max(float((actual.double() - expected).norm() / expected.norm()) for actual, expected in pairs)


def fused_loss(s: Side, _: Tensor, t: Side) -> Results:
    """Cross-entropy by the kernels; the values have no part."""
    return (triton_kernels.cross_entropy(s, t),)


def loss_from_maps(s: Side, _: Tensor, t: Side) -> Results:
    """Cross-entropy of formed logits."""
    return (rows.cross_entropy(s.logits(), t.logits()),)


def loss_in_tiles(s: Side, _: Tensor, t: Side) -> Results:
    """Cross-entropy of a tile of rows at a time."""
    return in_tiles(lambda a, b: (rows.cross_entropy(a.logits(), b.logits()),), s, t)


def fused_both(s: Side, v: Tensor, t: Side) -> Results:
    """Attention and cross-entropy in one pass."""
    return triton_kernels.distilled(s, v, t)


def both_from_maps(s: Side, v: Tensor, t: Side) -> Results:
    """Attention and cross-entropy of formed logits."""
    logits = s.logits()
    return rows.softmax(logits) @ v, rows.cross_entropy(logits, t.logits())


def both_apart(s: Side, v: Tensor, t: Side) -> Results:
    """PyTorch's attention, then the loss by the kernels."""
    return F.scaled_dot_product_attention(s.q, s.k, v), triton_kernels.cross_entropy(s, t)


def attention(s: Side, v: Tensor, _: Side) -> Results:
    """PyTorch's attention alone, without any loss."""
    return (F.scaled_dot_product_attention(s.q, s.k, v),)


WAYS: dict[str, dict[str, Run]] = {
    "cross-entropy": {"fused": fused_loss, "maps": loss_from_maps, "tiles": loss_in_tiles},
    "attention and cross-entropy": {
        "fused": fused_both,
        "maps": both_from_maps,
        "attention, then fused loss": both_apart,
        "attention alone": attention,
    },
}


def measured(operator: str, ways: dict[str, Run], tokens: int, repeats: int) -> list[dict[str, Any]]:
    """A row for every way."""
    inputs = operands(tokens, tokens, WIDTH, WIDTH, torch.bfloat16)
    peaks = {name: peak(run, inputs) for name, run in ways.items()}
    running = {name: run for name, run in ways.items() if peaks[name] is not None}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name in random.sample(list(running), len(running)):
            times[name].append(timed(running[name], inputs))
    return [row(operator, name, tokens, times, peaks[name]) for name in ways]


def row(
    operator: str, name: str, tokens: int, times: dict[str, list[tuple[float, float]]], extra: int | None
) -> dict[str, Any]:
    """Medians of one way, and how many times as long as the fused kernels it takes."""
    result: dict[str, Any] = {"operator": operator, "way": name, "tokens": tokens, "peak_bytes": extra}
    if not times[name]:
        return result
    for index, part in enumerate(("forward", "backward")):
        result[f"{part}_ms"] = statistics.median(pair[index] for pair in times[name])
        ratios = [pair[index] / fused[index] for pair, fused in zip(times[name], times["fused"], strict=True)]
        result[f"{part}_ratio"] = statistics.median(ratios)
        if name == "fused":
            flops = 2 * PRODUCTS[operator][index] * HEADS * tokens**2 * WIDTH
            result[f"{part}_tflops"] = flops / result[f"{part}_ms"] / 1e9
    return result


def passes(run: Run, inputs: tuple[Side, Tensor, Side], between: Callable[[], None]) -> None:
    """A forward and a backward pass, with a call between them."""
    s, v, _ = inputs
    results = run(*inputs)
    between()
    gradients = [torch.ones_like(result) for result in results]
    torch.autograd.grad(results, [s.q, s.k, v], gradients, allow_unused=True)


def peak(run: Run, inputs: tuple[Side, Tensor, Side]) -> int | None:
    """Bytes that both passes take at most, or `None` where there are not as many; tunes and warms up."""
    try:
        for _ in range(3):
            passes(run, inputs, lambda: None)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        passes(run, inputs, lambda: None)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def timed(run: Run, inputs: tuple[Side, Tensor, Side]) -> tuple[float, float]:
    """Milliseconds of the forward and of the backward pass."""
    start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    torch.cuda.synchronize()
    start.record()
    passes(run, inputs, middle.record)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(middle), middle.elapsed_time(end)


def show(lines: Sequence[dict[str, Any]]) -> None:
    """The table of one operator and size."""
    print(f"\n{lines[0]['operator']}, {lines[0]['tokens']} tokens")
    print(f"{'':28}{'forward':>22}{'backward':>22}{'peak':>11}")
    for line in lines:
        if "forward_ms" not in line:
            print(f"{line['way']:28}  out of memory")
            continue
        cells = (f"{line[f'{part}_ms']:10.3f} ms ({line[f'{part}_ratio']:5.2f}×)" for part in ("forward", "backward"))
        print(f"{line['way']:28}{' '.join(cells)}{line['peak_bytes'] / 2**20:8.0f} MiB", flush=True)


def configurations() -> list[str]:
    """What the tuning chose."""
    return [
        f"{kernel}: {key} -> {choice}"
        for (kernel, _), tuned in triton_kernels._TUNED.items()
        for key, choice in tuned.cache.items()
    ]


if __name__ == "__main__":
    main()
