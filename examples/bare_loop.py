"""Attention Distillation in a training loop of one's own: any timm ViT, any data.

python examples/bare_loop.py                    a few steps on random images, to see that it runs
python examples/bare_loop.py --pretrained       the same with DINO's weights (needs the network)
"""

from __future__ import annotations

import sys

import timm
import torch
from torch.nn import functional as F

import attention_transfer as at


def main(pretrained: bool, steps: int = 3) -> float:
    """Distil for a few steps; returns the last loss."""
    torch.manual_seed(0)
    teacher = timm.create_model("vit_small_patch16_224.dino", pretrained=pretrained)
    student = at.student_like(teacher, num_classes=10)
    transfer = at.AttentionTransfer(teacher, student, [at.Distill(weight=3.0)])
    optimizer = torch.optim.AdamW(transfer.parameters(), lr=1e-3)
    for step in range(steps):
        images, labels = torch.randn(2, 3, 224, 224), torch.randint(10, (2,))
        output = transfer(images)
        loss = output.total(F.cross_entropy(output.logits, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}, distill {output.losses['distill'].item():.3f}")
    return float(loss.detach())


if __name__ == "__main__":
    main("--pretrained" in sys.argv)
