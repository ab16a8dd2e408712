"""Attention Distillation between two Hugging Face models, in a plain PyTorch loop.

python examples/hugging_face_loop.py                    a few steps on random images, to see that it runs
python examples/hugging_face_loop.py --pretrained       the same with DINOv2's weights (needs the network)
"""

from __future__ import annotations

import sys

import torch
from torch.nn import functional as F
from transformers import AutoModel, Dinov2Config, Dinov2Model

import attention_transfer as at


def main(pretrained: bool, steps: int = 3) -> float:
    """Distil for a few steps; returns the last loss."""
    teacher = AutoModel.from_pretrained("facebook/dinov2-small") if pretrained else Dinov2Model(SMALL)
    student = at.student_like(teacher, num_classes=10)  # a Dinov2ForImageClassification, random weights
    transfer = at.AttentionTransfer(teacher, student, [at.Distill(weight=3.0)])
    optimizer = torch.optim.AdamW(transfer.parameters(), lr=1e-3)
    for step in range(steps):
        images, labels = torch.randn(2, 3, *at.describe(student).image_size), torch.randint(10, (2,))
        output = transfer(images)
        loss = output.total(F.cross_entropy(output.logits, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}, distill {output.losses['distill'].item():.3f}")
    return float(loss.detach())


SMALL = Dinov2Config(hidden_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=56)

if __name__ == "__main__":
    torch.manual_seed(0)
    main("--pretrained" in sys.argv)
