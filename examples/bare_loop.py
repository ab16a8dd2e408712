"""Attention Distillation in a training loop of one's own: any timm ViT, any data.

python examples/bare_loop.py                    a few steps on random images, to see that it runs
python examples/bare_loop.py --pretrained       the same with DINO's weights (needs the network)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import repeat

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attention_transfer as at


def train(teacher: nn.Module, student: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Distil; returns each step's distance of the maps."""
    transfer = at.AttentionTransfer(teacher, student, [at.Distill()])
    optimizer = torch.optim.AdamW(transfer.parameters(), lr=1e-3)
    distances = []
    for step, (images, labels) in enumerate(batches):
        output = transfer(images)
        loss = output.total(F.cross_entropy(output.logits, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(output.losses["distill"].item())
        print(f"step {step}: loss {loss.item():.3f}, distill {distances[-1]:.3f}")
    transfer.release()  # the student is a plain model again
    return distances


def main(pretrained: bool, steps: int = 3) -> None:
    """Train on a batch of noise."""
    torch.manual_seed(0)
    teacher = timm.create_model("vit_small_patch16_224.dino", pretrained=pretrained)
    student = at.student_like(teacher, num_classes=10)
    train(teacher, student, repeat((torch.randn(2, 3, 224, 224), torch.randint(10, (2,))), steps))


if __name__ == "__main__":
    main("--pretrained" in sys.argv)
