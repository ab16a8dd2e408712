"""Attention Distillation between two Hugging Face models, in a plain PyTorch loop.

python examples/hugging_face_loop.py                    a few steps on random images, to see that it runs
python examples/hugging_face_loop.py --pretrained       the same with DINOv2's weights (needs the network)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, Dinov2Config, Dinov2Model

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
    small = Dinov2Config(hidden_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=56)
    teacher = AutoModel.from_pretrained("facebook/dinov2-small") if pretrained else Dinov2Model(small)
    student = at.student_like(teacher, num_classes=10)  # a Dinov2ForImageClassification, random weights
    images = torch.randn(2, 3, *at.describe(student).image_size)
    train(teacher, student, repeat((images, torch.randint(10, (2,))), steps))


if __name__ == "__main__":
    torch.manual_seed(0)
    main("--pretrained" in sys.argv)
