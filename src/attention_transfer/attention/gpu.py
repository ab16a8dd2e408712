"""What kernels want of a GPU, asked for so that a compiler that traces the question finds a constant.

Imported where the question comes up: `assume_constant_result` loads the compiler.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def _before_ampere() -> bool:
    return bool(torch.cuda.is_available() and torch.version.cuda and torch.cuda.get_device_capability() < (8, 0))


before_ampere: Callable[[], bool] = torch.compiler.assume_constant_result(_before_ampere)
"""Whether the GPU is too old for PyTorch's flash attention, and for Triton's bfloat16."""
