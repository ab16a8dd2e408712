"""What `corrupt` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from attention_transfer.config.base import Config
from attention_transfer.config.choices import SplitName


@dataclass(frozen=True, kw_only=True)
class Corrupt(Config):
    """Settings of `corrupt`."""

    data: str = field(kw_only=False)
    """Labelled images, in the forms of `load_data`."""

    out: str = field(kw_only=False)
    """Folder for the images: CORRUPTION/SEVERITY/CLASS below it, or CLASS alone with backgrounds."""

    kinds: str | list[str] = "all"
    """Corruptions, in a list, or all fifteen: gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur,
    motion_blur, zoom_blur, snow, frost, fog, brightness, contrast, elastic_transform, pixelate, jpeg_compression."""

    severities: int | list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    """How much, from 1 to 5."""

    backgrounds: str | None = None
    """In place of corruptions: a folder of photographs, on which the objects are put; that needs masks."""

    masks: str | None = None
    """For backgrounds, the folder of the masks of a folder of images, with the same names but for the suffix; 0 is
    background. Embedded scenes have masks of their own."""

    split: SplitName = "test"
    """Which images."""

    limit: int | None = None
    """How many of them, at even distances; default all."""

    seed: int = 0
    """Of all that is random."""

    overwrite: bool = False
    """Replace images that this verb wrote to that folder."""

    def problems(self) -> list[str]:
        """Numbers out of bounds, and masks without backgrounds."""
        found = super().problems()
        severities = [self.severities] if isinstance(self.severities, int) else self.severities
        if not severities or not all(1 <= severity <= 5 for severity in severities):
            found.append(f"severities is {self.severities}; choose from 1 to 5")
        if self.limit is not None and self.limit < 1:
            found.append(f"limit is {self.limit}; give at least 1 image")
        if self.masks is not None and self.backgrounds is None:
            found.append("masks are for backgrounds; name a folder of photographs with --backgrounds")
        if self.backgrounds is not None and self.kinds != "all":
            found.append("backgrounds take the place of corruptions; leave kinds out, or write these to another folder")
        return found
