"""Maps laid out for a figure: which stand side by side, and which share a scale.

Shapes: R and C rows and columns of patches, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.config.show import Show
from attention_transfer.data import Placement
from attention_transfer.data.placement import Floats
from attention_transfer.evaluation.attention_panels import Shown
from attention_transfer.evaluation.foreground import foreground
from attention_transfer.viewing import Panel, PanelRow, Scale


@dataclass(frozen=True, eq=False)
class Seen:
    """One image, and what each network gave.

    Attributes:
        image: as people see it.
        mask: what is an object in it, (h, w), if that is known.
        networks: the maps of each.
        differences: those of each but the first, minus the first's.
    """

    image: Image.Image
    mask: NDArray[np.bool_] | None
    networks: Sequence[Shown]
    differences: Sequence[Shown] = ()

    @property
    def all(self) -> tuple[Shown, ...]:
        """Networks, then differences."""
        return (*self.networks, *self.differences)


class Rows:
    """Makes the rows of panels, each with its scale.

    Args:
        seen: at least one image, each looked at by the same networks.
        config: what is shown.
        label: what the values are.
        scaled: the same images with all maps that share their scales, here or in other figures; default those seen.
    """

    def __init__(self, seen: Sequence[Seen], config: Show, label: str, *, scaled: Sequence[Seen] | None = None) -> None:
        self._seen, self._config, self._label, self._scaled = seen, config, label, scaled or seen
        self._scales: dict[tuple[int, int, bool], Scale] = {}  # by image and network, -1 for all of them; differences

    @property
    def common(self) -> list[Scale]:
        """The scales of the whole figure."""
        alone = {"image": len(self._seen), "network": len(self._seen[0].all)}
        if self._config.scale != "all" and alone.get(self._config.scale) != 1:
            return []
        return [self._scale(0, len(self._seen[0].networks) * kind) for kind in (0, 1) if self._has(kind)]

    def of_images(self, titles: Sequence[str]) -> list[PanelRow]:
        """A row for each image: the image, and one map for each network; or for two images, where that leaves room."""
        beside = [self._beside(i, range(len(each.all)), first=True) for i, each in enumerate(self._seen)]
        pairs = 2 if len(titles) == 1 and len(self._seen) > 1 and not any(beside) else 1
        rows = []
        for start in range(0, len(self._seen), pairs):
            panels = []
            for i in range(start, min(start + pairs, len(self._seen))):
                each, above = self._seen[i], start == 0
                panels.append(self._alone(i, each.all[0].placement, "image" if above else ""))
                for n, (shown, title) in enumerate(zip(each.all, titles, strict=True)):
                    panels += [self._panel(i, n, key, title if above else "") for key in shown.maps]
            rows.append(PanelRow(panels, scales=beside[start]))
        return rows

    def of_networks(self, titles: Sequence[str]) -> list[PanelRow]:
        """A row for each image and network, and for each layer where each has several heads."""
        rows = []
        for i, each in enumerate(self._seen):
            for n, (shown, title) in enumerate(zip(each.all, titles, strict=True)):
                layers, heads = (list(dict.fromkeys(key[part] for key in shown.maps)) for part in (0, 1))
                sheet = len(layers) > 1 and len(heads) > 1
                titled = n == 0 or shown.maps.keys() != each.all[n - 1].maps.keys()
                for line in [[layer] for layer in layers] if sheet else [layers]:
                    first = line[0] == layers[0]
                    panels: list[Panel | None] = [
                        self._alone(i, shown.placement, "image" if titled else "") if first else None
                    ]
                    for key in (key for key in shown.maps if key[0] in line):
                        above = key[1] if len(heads) > 1 else key[0]
                        panels.append(self._panel(i, n, key, above if first and titled else ""))
                    label = [title if len(titles) > 1 else "", line[0] if sheet else ""]
                    beside = self._beside(i, [n], first=first and n == 0) if first else []
                    rows.append(PanelRow(panels, "\n".join(filter(None, label)), beside))
        return rows

    def _has(self, kind: int) -> bool:
        return bool(self._seen[0].differences if kind else self._seen[0].networks)

    def _difference(self, n: int) -> bool:
        return n >= len(self._seen[0].networks)

    def _beside(self, i: int, networks: Iterable[int], *, first: bool) -> list[Scale]:
        """The scales whose bars stand beside a row; `first` says whether it is the first of its image."""
        if self.common or self._config.scale == "map":
            return []
        if self._config.scale == "image":
            start = len(self._seen[0].networks)
            scales = [self._scale(i, start * kind) for kind in (0, 1) if first and self._has(kind)]
            return scales if i == 0 else [replace(scale, label="") for scale in scales]  # which says the same
        return [self._scale(i, n) for n in networks] if i == 0 else []

    def _scale(self, i: int, n: int) -> Scale:
        """The scale of the maps of a network on an image, which it shares as is asked for."""
        shared, difference = self._config.scale, self._difference(n)
        key = (i if shared == "image" else -1, n if shared == "network" else -1, difference)
        if key not in self._scales:
            start = len(self._seen[0].networks) if difference else 0
            maps = [
                patches
                for place, each in enumerate(self._scaled)
                for number, shown in enumerate(each.differences if difference else each.networks, start)
                if key[0] in (-1, place) and key[1] in (-1, number)
                for patches in shown.maps.values()
            ]
            self._scales[key] = self._scale_of(maps, difference=difference)
        return self._scales[key]

    def _scale_of(self, maps: Sequence[Floats], *, difference: bool) -> Scale:
        label = "difference" if difference else self._label
        return Scale.of(maps, label=label, diverging=difference, clip=self._config.clip)

    def _alone(self, i: int, placement: Placement, title: str) -> Panel:
        return Panel(self._seen[i].image, placement, mask=self._seen[i].mask, title=title)

    def _panel(self, i: int, n: int, key: tuple[str, str], title: str) -> Panel:
        each, shown, difference = self._seen[i], self._seen[i].all[n], self._difference(n)
        patches = shown.maps[key]
        own = self._config.scale == "map"
        scale = self._scale_of([patches], difference=difference) if own else self._scale(i, n)
        outlined = None
        if self._config.mass is not None and not difference:
            outlined = foreground(torch.from_numpy(patches)[None], self._config.mass)[0].numpy()
        return Panel(each.image, shown.placement, patches, scale, outlined, each.mask, shown.query, title)
