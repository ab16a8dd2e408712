"""What a step of ViT-B, L and H costs on one device and on many, counted from the architecture; no device is needed.

    python benchmarks/scale.py [--tflops 400] [--bandwidth 200] [--batch 64]

Operations are counted by running one image through each network and method with one block and with two, on the CPU.
Images a second follow from a sustained speed that is assumed, not measured: --tflops of one device in bfloat16. With
several devices each holds the whole network (DDP), and all gradients are summed once a step in float32: a ring
all-reduce moves 2 (n - 1) / n of their bytes through each device, at --bandwidth GB/s, and half of that time is assumed
to hide behind the backward pass.

Memory is counted too: what a training holds of weights, gradients and optimiser (`state`), whole or in shares of 8
devices (FSDP), where the frozen teacher stays whole; and what the backward pass needs of --batch images, in bfloat16 as
the CPU's autocast rounds, without and with gradient checkpointing (then every block's input, and one block whole): the
bytes that autograd saves for two images less those for one. Scratch space of kernels and of the allocator comes on top.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
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
SHARES = 8
STATE_BYTES = 4 + 4 + 8 + 4  # a weight, its gradient, AdamW's two means, the averaged weight
TEACHER_BYTES = 4  # frozen, and rounded to bfloat16 only where it is computed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=400.0, help="sustained, of one device")
    parser.add_argument("--bandwidth", type=float, default=200.0, help="GB/s of the all-reduce")
    parser.add_argument("--batch", type=int, default=64, help="images a device and step")
    args = parser.parse_args()
    titles = ["network", "method", "TFLOP an image", *(f"images/s on {n}" for n in DEVICES)]
    titles += ["state, GB", f"in {SHARES} shares", f"{args.batch} images, GB", "checkpointed"]
    print("| " + " | ".join(titles) + " |")
    print("|---|---|" + "---:|" * (len(titles) - 2))
    for title, name in NETWORKS.items():
        for method, rules in METHODS.items():
            cells = row(name, rules, args)
            print(f"| {title} | {method} | " + " | ".join(cells) + " |", flush=True)


def row(name: str, rules: list[Rule], args: argparse.Namespace) -> list[str]:
    """A network's figures under a method."""
    with torch.device("meta"):
        whole = cast(nn.Module, timm.create_model(name))
    depth, weights = describe(whole).depth, sum(p.numel() for p in whole.parameters())

    def of_all_blocks(counted: Callable[[int], float]) -> float:
        return counted(1) + (depth - 1) * (counted(2) - counted(1))

    operations = of_all_blocks(lambda blocks: step(name, blocks, rules))
    block = saved(name, 2, rules) - saved(name, 1, rules)
    kept = of_all_blocks(lambda blocks: saved(name, blocks, rules))
    again = block + of_all_blocks(lambda blocks: saved(name, blocks, rules, checkpoint=True))
    teacher = TEACHER_BYTES * weights if rules else 0
    memory = [STATE_BYTES * weights + teacher, STATE_BYTES * weights / SHARES + teacher]
    memory += [args.batch * kept, args.batch * again]
    speeds = [speed(operations, weights, n, args) for n in DEVICES]
    return [f"{operations / 1e12:.3f}", *(f"{s:,.0f}" for s in speeds), *(f"{m / 1e9:.1f}" for m in memory)]


def pair(name: str, depth: int, rules: list[Rule], *, checkpoint: bool = False) -> AttentionTransfer:
    """A method on the network cut to so many blocks; every further block adds the same."""
    teacher, student = (cast(nn.Module, timm.create_model(name, depth=depth)) for _ in range(2))
    cast(Any, student).set_grad_checkpointing(checkpoint)
    return AttentionTransfer(teacher if rules else None, student, rules)


def loss(transfer: AttentionTransfer, images: int) -> Tensor:
    """Of a forward pass."""
    output = transfer(torch.randn(images, 3, 224, 224))
    total: Tensor = output.total(F.cross_entropy(output.logits, torch.zeros(images, dtype=torch.long)))
    return total


def step(name: str, depth: int, rules: list[Rule]) -> float:
    """Operations of a step on one image."""
    transfer = pair(name, depth, rules)
    with FlopCounterMode(display=False) as counter:
        loss(transfer, 1).backward()
    return float(counter.get_total_flops())


def saved(name: str, depth: int, rules: list[Rule], *, checkpoint: bool = False) -> float:
    """Bytes that one more image leaves for the backward pass; with `checkpoint`, of a block its input."""
    transfer = pair(name, depth, rules, checkpoint=checkpoint)
    totals = []
    for images in (1, 2):
        bytes_of: dict[int, int] = {}
        kept: list[Tensor] = []  # so that no storage is counted as another that has gone

        def keep(tensor: Tensor, bytes_of: dict[int, int] = bytes_of, kept: list[Tensor] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            bytes_of[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
            return tensor

        def keep_input(block: nn.Module, given: tuple[Tensor, ...], keep: Any = keep) -> None:  # noqa: ARG001
            keep(given[0])  # what a checkpointed block is computed again from

        handles = [block.register_forward_pre_hook(keep_input) for block in cast(Any, transfer.student).blocks]
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            loss(transfer, images)
        for handle in handles:
            handle.remove()
        totals.append(sum(bytes_of.values()))
    return float(totals[1] - totals[0])


def speed(operations: float, weights: int, devices: int, args: argparse.Namespace) -> float:
    """Images a second of all devices together."""
    compute = args.batch * operations / (args.tflops * 1e12)
    traffic = 2 * (devices - 1) / devices * 4 * weights / (args.bandwidth * 1e9)
    return float(devices * args.batch / (compute + traffic / 2))


if __name__ == "__main__":
    main()
