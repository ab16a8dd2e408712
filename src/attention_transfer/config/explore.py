"""What the verb `explore` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from attention_transfer.config.base import Config, below_one, model_problems
from attention_transfer.config.choices import Device, SplitName
from attention_transfer.config.show import Show

View = Literal["auto", "page", "notebook"]

NETWORKS = 4
"""How many are shown side by side."""


@dataclass(frozen=True, kw_only=True)
class Explore(Config):
    """Settings of `explore`."""

    models: list[str] = field(default_factory=list, kw_only=False)
    """Up to four networks, side by side: folders of runs, or models in the forms of `load_vit`, e.g. timm/<name>;
    default builtin/vit_characters. On the command line, every word that is no image is one."""

    images: list[str] = field(default_factory=list, kw_only=False)
    """Image files, folders (with all below them), or patterns in quotes, e.g. "photos/*.jpg"; default the data set."""

    data: str | None = None
    """Data set whose images are offered where none are named, in the forms of `load_data`; default that of the runs,
    and digit-scenes for the built-in network."""

    split: SplitName = "test"
    """Which of its images."""

    limit: int | None = None
    """How many images to offer, at even distances; default 200, and 8 in a file."""

    image_size: int | None = None
    """Input pixels, height and width; default each network's own."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    uploads: bool = True
    """Let the page take images of yours, which stay in memory and go as it ends."""

    view: View = "auto"
    """page for a browser, notebook for a widget below the cell; auto takes the notebook where this runs in one."""

    host: str = "127.0.0.1"
    """Address to listen on; on any but this machine's own, the page needs the token that is printed with it."""

    port: int = 8765
    """Port to listen on, or the next free one."""

    open: bool = False
    """Open the page in a browser."""

    html: str | None = None
    """Write one .html file in place of a page that is served: it holds networks' attention on a few images and needs
    neither this program nor a network connection."""

    layers: int | str | list[int] | None = None
    """Blocks whose attention is in that file; default the last and those before it that its size leaves room for."""

    overwrite: bool = False
    """Replace that file."""

    @classmethod
    def sorted_words(cls, words: Sequence[str]) -> dict[str, list[str]]:
        """Words of the command line that are images, and all others, which are models."""
        return Show.sorted_words(words)

    def problems(self) -> list[str]:
        """Too many networks, numbers out of bounds, and settings without effect."""
        found = super().problems() + below_one(limit=self.limit)
        if self.models:
            found += model_problems(self.models)
        if len(self.models) > NETWORKS:
            found.append(f"{len(self.models)} networks are named; name at most {NETWORKS}")
        if not 0 <= self.port < 65_536:
            found.append(f"port is {self.port}; choose one from 0 to 65535")
        if self.images and self.data is not None:
            found.append("data has no effect where images are named; leave one of the two out")
        if self.html is None:
            found += [] if self.layers is None else ["layers is of the file that html names; leave it out"]
            found += ["overwrite is of the file that html names; leave it out"] if self.overwrite else []
        elif self.open:
            found.append("open is of a page that is served; leave it out, or html")
        return found
