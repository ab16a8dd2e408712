"""What the seam costs, and what a teacher costs that stops early: paired runs on one machine.

    python benchmarks/seam_cost.py [--pairs N] [--device cpu|cuda] [--out FILE]

Capture: the forward of ViT-S/16 at 224 pixels with the queries and keys of all layers captured, against the plain
forward; the seam alone, without keeping what it sees; and capture while autograd keeps the same tensors anyway.
Teacher: ViT-B/16 run for its queries and keys only (of all layers, and of the first half), against its full forward.
The two sides of a pair run one after the other in random order; the figure is the median of the pairs' ratios,
with a 95 % interval from 10,000 bootstrap resamples.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from attention_transfer import AttentionProbe, capture
from attention_transfer.vit import hook_attention

Run = Callable[[], object]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with torch.no_grad():
        rows = measurements(arguments.device, arguments.batch, arguments.pairs)
    for row in rows:
        print(f"{row['what']}: {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f}) of {row['of']}")
    if arguments.out:
        report = {
            "date": date.today().isoformat(),
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "batch": arguments.batch,
            "pairs": arguments.pairs,
            "versions": {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()},
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def measurements(device: str, batch: int, pairs: int) -> list[dict[str, Any]]:
    """All figures."""
    images = torch.randn(batch, 3, 224, 224, device=device)
    small = timm.create_model("vit_small_patch16_224").eval().to(device)
    base = timm.create_model("vit_base_patch16_224").eval().to(device)
    plain = partial(small, images)
    rows = [
        paired(
            "the seam alone, nothing kept, ViT-S/16", "a plain forward", partial(heard, small, images), plain, pairs
        ),
        paired("capture of q and k, ViT-S/16", "a plain forward", partial(captured, small, images), plain, pairs),
    ]
    with torch.enable_grad():
        in_training = partial(captured, small, images)
        rows.append(paired("capture of q and k, autograd on, ViT-S/16", "a plain forward", in_training, plain, pairs))
    for what, layers in (("all layers", range(12)), ("the first six layers", range(6))):
        probe = AttentionProbe(base, layers)
        stopped, full = partial(probe, images), partial(base, images)
        rows.append(paired(f"teacher for q and k of {what}, ViT-B/16", "a full forward", stopped, full, pairs))
        probe.release()
    return rows


def heard(model: nn.Module, images: torch.Tensor) -> object:
    """A forward with a listener at every block that keeps nothing."""
    handles = hook_attention(model, dict.fromkeys(range(12), lambda call: call))
    output = model(images)
    for handle in handles:
        handle.remove()
    return output


def captured(model: nn.Module, images: torch.Tensor) -> object:
    """A forward with capture on; attaching and removing is part of the cost."""
    with capture(model) as calls:
        model(images)
    return calls


def paired(what: str, of: str, run: Run, reference: Run, pairs: int) -> dict[str, Any]:
    """Median ratio of the times of two runs, with its interval."""
    for warm in (run, reference) * 3:
        warm()
    ratios = []
    for _ in range(pairs):
        seconds = {}
        for side in random.sample((run, reference), 2):
            seconds[side is run] = timed(side)
        ratios.append(seconds[True] / seconds[False])
    resamples = np.median(np.random.default_rng(0).choice(ratios, (10_000, pairs)), axis=1)
    low, high = np.percentile(resamples, [2.5, 97.5])
    return {"what": what, "of": of, "ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def timed(run: Run) -> float:
    """Seconds of a run, to the end of its work on the device."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
