"""What the pictures of attention show."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_transfer import AttentionTransfer, Copy, capture, student_like
from attention_transfer.experiments.pictures import attended


def test_a_map_is_what_the_patches_get_of_all_attention(vit: Any, images: Tensor) -> None:
    _, maps_LRC = attended(vit, vit, images[:1])
    with capture(vit) as calls:
        vit(images[:1])
    assert maps_LRC.shape == (3, 2, 2)
    received = calls[2].maps().mean(dim=(1, 2))[0]
    np.testing.assert_allclose(maps_LRC[2].ravel(), received[1:].detach().numpy(), rtol=1e-5)


def test_a_copied_student_shows_its_teachers_attention(vit: Any, images: Tensor) -> None:
    torch.manual_seed(3)
    student = student_like(vit, num_classes=5).eval()
    transfer = AttentionTransfer(vit, student, [Copy()])
    _, of_teacher = attended(vit, vit, images[:1])
    with torch.no_grad():
        _, alone = attended(student, student, images[:1])
    network = _Logits(transfer)
    _, of_student = attended(network, student, images[:1])
    np.testing.assert_array_equal(of_student, of_teacher)
    assert not np.allclose(alone, of_teacher)


class _Logits(torch.nn.Module):
    def __init__(self, transfer: AttentionTransfer) -> None:
        super().__init__()
        self.transfer = transfer

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.transfer(images).logits
        return logits
