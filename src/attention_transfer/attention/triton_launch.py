"""Runs the Triton programs: which tiles suit which operands, and the order of the arguments."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from attention_transfer.attention.triton_programs import INTERPRETS, KERNELS

try:
    from triton import OutOfResources
except ImportError:  # then nothing is launched
    OutOfResources = RuntimeError

# Tiles as BLOCK_N, BLOCK_M, warps and stages: for heads up to 64 wide the fastest at 1,024 tokens on an H100, elsewhere
# large ones that spill few registers on Ampere and Hopper. They are fixed, and not timed at the first call: other tiles
# round otherwise, and a run that is resumed must not.
TILES = {
    "narrow": {"forward": (64, 64, 4, 3), "rows": (64, 64, 4, 2), "keys": (32, 64, 4, 3)},
    "wide": {"forward": (64, 64, 8, 2), "rows": (64, 64, 8, 2), "keys": (64, 64, 8, 2)},
    "masked": {"forward": (64, 32, 8, 1), "rows": (64, 32, 8, 1), "keys": (32, 32, 4, 1)},
    "float32": {"forward": (16, 32, 4, 1), "rows": (16, 32, 4, 1), "keys": (32, 16, 4, 1)},
    "interpreted": {"forward": (32, 16, 4, 1), "rows": (32, 16, 4, 1), "keys": (32, 16, 4, 1)},
}


class Operands:
    """What all three kernels are given, in their order, and which tiles suit it.

    Args:
        tensors: q, k and v of the student and q and k of the teacher, (B, H, tokens, D), with dense rows; v or `None`.
        masks: of both sides, (B, H, N, M), or `None`.
        stats: what the rows keep between the passes, (4, B, H, N).
        scales: factors on the logits of both sides.
    """

    def __init__(
        self,
        tensors: tuple[Tensor | None, ...],
        masks: tuple[Tensor | None, ...],
        stats: Tensor,
        scales: tuple[float, float],
    ) -> None:
        q_s, k_s, v_s, q_t, _ = tensors
        assert q_s is not None
        assert k_s is not None
        assert q_t is not None
        self.tokens = {"forward": q_s.shape[2], "rows": q_s.shape[2], "keys": k_s.shape[2]}
        self.heads, self.device = q_s.shape[0] * q_s.shape[1], q_s.device
        self.arguments: list[Any] = [x for tensor in tensors for x in strided(tensor)]
        for mask in masks:
            self.arguments += (*strided(mask), 0 if mask is None else mask.stride(3))
        self.arguments += (stats, *scales, q_s.shape[1], q_s.shape[2], k_s.shape[2])
        widths = {"S": q_s.shape[-1], "T": q_t.shape[-1], "V": (k_s if v_s is None else v_s).shape[-1]}
        wide = {side: max(16, 1 << (width - 1).bit_length()) for side, width in widths.items()}
        self.constants = {f"D_{side}": x for side, x in widths.items()} | {
            f"WIDE_{side}": x for side, x in wide.items()
        }
        if INTERPRETS:
            self.kinds: tuple[str, ...] = ("interpreted",)
        elif torch.float32 in (q_s.dtype, q_t.dtype):
            self.kinds = ("float32",)
        elif any(mask is not None for mask in masks):
            self.kinds = ("masked", "float32")
        else:  # smaller ones where those don't fit
            self.kinds = ("narrow" if max(wide.values()) <= 64 else "wide", "masked", "float32")


def strided(x: Tensor | None) -> tuple[Any, ...]:
    """A tensor (B, H, tokens, D) and its strides as arguments of a kernel."""
    return (None, 0, 0, 0) if x is None else (x, *x.stride()[:3])


def launch(name: str, operands: Operands, *others: Any) -> None:
    """Run a kernel with a program for every tile of rows (of keys, for "keys") of every head."""
    tokens = operands.tokens[name]
    if not operands.heads * tokens:
        return
    with torch.cuda.device(operands.device) if operands.device.type == "cuda" else contextlib.nullcontext():
        for kind in operands.kinds:
            block_n, block_m, warps, stages = TILES[kind][name]
            grid = (operands.heads * -(-tokens // (block_m if name == "keys" else block_n)),)
            tiles = {"BLOCK_N": block_n, "BLOCK_M": block_m, "num_warps": warps, "num_stages": stages}
            try:
                KERNELS[name][grid](*operands.arguments, *others, **operands.constants, **tiles)
            except OutOfResources:  # a small GPU has less memory beside its cores
                if kind == operands.kinds[-1]:
                    raise
            else:
                return
