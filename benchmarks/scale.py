"""What a step of ViT-B, L and H costs on one device and on many, counted from the architecture; no device is needed.

    python benchmarks/scale.py [--tflops 400] [--bandwidth 200] [--batch 64]

Operations are counted by running one image through each network and method with one block and with two, on the CPU.
Images a second follow from a sustained speed that is assumed, not measured: --tflops of one device in bfloat16. With
several devices each holds the whole network (DDP), and all gradients are summed once a step in float32: a ring
all-reduce moves 2 (n - 1) / n of their bytes through each device, at --bandwidth GB/s, and half of that time is assumed
to hide behind the backward pass.
"""

from __future__ import annotations

import argparse
from typing import cast

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from attention_transfer import AttentionTransfer, Copy, Distill, Guide, Rule, describe

NETWORKS = {
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-L/16": "vit_large_patch16_224",
    "ViT-H/14": "vit_huge_patch14_224",
}
METHODS: dict[str, list[Rule]] = {
    "fine-tuning": [],
    "copy": [Copy()],
    "distill": [Distill()],
    "gta": [Guide()],
}
DEVICES = (1, 8, 64)
STATE_BYTES = 4 + 4 + 8 + 4  # a weight, its gradient, AdamW's two means, the averaged weight


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=400.0, help="sustained, of one device")
    parser.add_argument("--bandwidth", type=float, default=200.0, help="GB/s of the all-reduce")
    parser.add_argument("--batch", type=int, default=64, help="images a device and step")
    args = parser.parse_args()
    print("| network | method | TFLOP an image | state, GB | " + " | ".join(f"images/s on {n}" for n in DEVICES) + " |")
    print("|---|---|---:|---:|" + "---:|" * len(DEVICES))
    for title, name in NETWORKS.items():
        for method, rules in METHODS.items():
            operations, weights = counted(name, rules)
            teacher = 0 if not rules else 2 * weights  # frozen, in bfloat16
            state = (STATE_BYTES * weights + teacher) / 1e9
            speeds = [speed(operations, weights, n, args) for n in DEVICES]
            cells = [f"{operations / 1e12:.3f}", f"{state:.1f}", *(f"{s:,.0f}" for s in speeds)]
            print(f"| {title} | {method} | " + " | ".join(cells) + " |", flush=True)


def counted(name: str, rules: list[Rule]) -> tuple[float, int]:
    """Operations of one training step on one image, and the number of the student's weights."""
    with torch.device("meta"):
        whole = cast(nn.Module, timm.create_model(name))
    depth = describe(whole).depth
    one, two = step(name, 1, rules), step(name, 2, rules)
    return one + (depth - 1) * (two - one), sum(p.numel() for p in whole.parameters())


def step(name: str, depth: int, rules: list[Rule]) -> float:
    """Operations of a step of the network cut to so many blocks; every further block adds the same."""
    teacher, student = (cast(nn.Module, timm.create_model(name, depth=depth)) for _ in range(2))
    transfer = AttentionTransfer(teacher if rules else None, student, rules)
    with FlopCounterMode(display=False) as counter:
        output = transfer(torch.randn(1, 3, 224, 224))
        output.total(F.cross_entropy(output.logits, torch.zeros(1, dtype=torch.long))).backward()
    return float(counter.get_total_flops())


def speed(operations: float, weights: int, devices: int, args: argparse.Namespace) -> float:
    """Images a second of all devices together."""
    compute = args.batch * operations / (args.tflops * 1e12)
    traffic = 2 * (devices - 1) / devices * 4 * weights / (args.bandwidth * 1e9)
    return float(devices * args.batch / (compute + traffic / 2))


if __name__ == "__main__":
    main()
