"""In which numbers a network is run, where nobody says."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from attention_transfer.config.choices import Precision

_CPU_INFO = Path("/proc/cpuinfo")  # Linux; elsewhere nothing public tells
_NATIVE = ("amx_bf16", "avx512_bf16")  # x86 instructions that multiply bfloat16
_SMALL = 1_000_000  # weights of a network in which conversions cost more than bfloat16's products save


class Chosen(NamedTuple):
    """A precision, and the reason for it in words."""

    precision: Precision
    reason: str


def choose_precision(device: str, weights: int) -> Chosen:
    """bfloat16 where it is faster, else float32.

    A CPU without instructions for bfloat16 converts every operand, and is some fifteen times slower than in float32.

    Args:
        device: "cpu", "cuda" or "mps".
        weights: of the network that is trained.
    """
    if weights < _SMALL:
        return Chosen("fp32", "the network is small")
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Chosen("bf16", "the GPU multiplies bfloat16")
        return Chosen("fp32", "the GPU doesn't multiply bfloat16; fp16 is faster on most, if its range is enough")
    if device == "mps":
        return Chosen("fp32", "bfloat16 is not tried on mps")
    native = [name for name in _NATIVE if name in _cpu_flags()]
    if native:
        return Chosen("bf16", f"the CPU multiplies bfloat16 ({native[0]})")
    return Chosen("fp32", "the CPU has no instructions for bfloat16")


def _cpu_flags() -> set[str]:
    """The instruction sets that Linux names for the first processor; none elsewhere."""
    if not _CPU_INFO.exists():
        return set()
    lines = _CPU_INFO.read_text(errors="replace").splitlines()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
