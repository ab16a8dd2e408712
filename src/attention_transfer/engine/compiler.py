"""Whether what `torch.compile` needs is there."""

from __future__ import annotations

import os
import shutil
import sys

import torch

from attention_transfer.config.choices import Device
from attention_transfer.config.recipe import Recipe


def compiler_problems(recipe: Recipe, device: Device) -> list[str]:
    """Why a training step can't be compiled for the CPU: PyTorch writes C++ there, and calls `$CXX`, g++ or clang++."""
    if not recipe.compile or (device != "cpu" and torch.cuda.is_available()):
        return []
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is not None:
        return []
    return [f"recipe.compile needs the C++ compiler {name}, which is not there; install one, or leave compile out"]
