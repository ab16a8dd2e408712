"""One augmented image for two networks that were made for different input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.vit.describe import describe
from attention_transfer.vit.libraries import ViTSpec


class InputFor(nn.Module):
    """Turns images that were normalised and sized for one network into another's."""

    def __init__(self, target: ViTSpec, source: ViTSpec) -> None:
        super().__init__()
        self.size = target.image_size if target.image_size != source.image_size else None
        self.same = target.mean == source.mean and target.std == source.std
        mean_t, std_t, mean_s, std_s = (
            torch.tensor(values)[:, None, None] for values in (target.mean, target.std, source.mean, source.std)
        )
        if not self.same:
            self.register_buffer("scale", std_s / std_t, persistent=False)
            self.register_buffer("shift", (mean_s - mean_t) / std_t, persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images as the target network expects them, (B, channels, height, width)."""
        if not self.same:
            images_BCHW = images_BCHW * self.get_buffer("scale") + self.get_buffer("shift")
        if self.size is not None:
            images_BCHW = F.interpolate(images_BCHW, size=self.size, mode="bicubic", antialias=True)
        return images_BCHW


def input_for(target: nn.Module, source: nn.Module) -> nn.Module:
    """A module that turns images for one network into another's; the identity where nothing differs."""
    there, here = describe(target), describe(source)
    alike = (there.image_size, there.mean, there.std) == (here.image_size, here.mean, here.std)
    return nn.Identity() if alike else InputFor(there, here)
