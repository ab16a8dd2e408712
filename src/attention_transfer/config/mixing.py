"""How images and their labels are mixed: mixup, CutMix and TransMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from attention_transfer.config.choices import TransMix
from attention_transfer.errors import nearest

# Below, PyTorch's samples of the Beta distribution underflow: at 0.001 every fourth is 0.5. Above, all are near 0.5.
_LOWEST, _HIGHEST = 0.01, 1000.0


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How the images of a batch and their labels are mixed, in training only.

    A batch is mixed as a whole: one share, and with CutMix one box, for all its images.

    Attributes:
        mixup: α of the Beta(α, α) from which mixup draws a batch's share (Zhang et al. 2018, arXiv 1710.09412);
            0 is off, else from 0.01 to 1000.
        cutmix: likewise for CutMix (Yun et al. 2019, arXiv 1905.04899).
        mix_probability: share of the batches that are mixed.
        mix_switch: share of the mixed batches that CutMix mixes, where mixup is on too.
        transmix: whose attention weighs the labels of CutMix (Chen et al. 2022, arXiv 2111.09833); "off" weighs them
            by area.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_switch: float = 0.5
    transmix: TransMix = "off"

    @property
    def on(self) -> bool:
        """Whether any batch is mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def problems(self) -> list[str]:
        """What is wrong with the settings, a sentence each, which begins with the setting's name."""
        found = []
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if not (alpha == 0 or _LOWEST <= alpha <= _HIGHEST):  # also refuses NaN
                found.append(f"{name} is {alpha}; give 0, which is off, or a number from {_LOWEST:g} to {_HIGHEST:g}")
        for name in ("mix_probability", "mix_switch"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name} is {getattr(self, name)}; give a number of at least 0 and at most 1")
        if self.transmix not in get_args(TransMix):
            found.append(f"transmix is {self.transmix!r}; {nearest(str(self.transmix), get_args(TransMix))}")
        return found or self._without_effect()

    def _without_effect(self) -> list[str]:
        """Settings that are right in themselves and would do nothing."""
        found = []
        if self.transmix != "off" and self.cutmix == 0:
            found.append(f"transmix={self.transmix!r} weighs the labels of CutMix, which is off; set cutmix above 0")
        if self.mix_probability != Mixing.mix_probability and not self.on:
            found.append("mix_probability has no effect without mixup and cutmix; leave it out")
        if self.mix_switch != Mixing.mix_switch and not (self.mixup > 0 and self.cutmix > 0):
            found.append("mix_switch has no effect unless mixup and cutmix are both on; leave it out")
        return found
