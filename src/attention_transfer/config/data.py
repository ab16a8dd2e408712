"""What `data` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from attention_transfer.config.base import Config


@dataclass(frozen=True, kw_only=True)
class InspectData(Config):
    """Settings of `data`."""

    path: str = field(kw_only=False)
    """Data set, in the forms of `load_data`: a folder, a .csv or .tsv file, shards, hf/…, torchvision/…, digits."""

    strict: bool = False
    """Refuse damaged images instead of reporting them."""

    duplicates: bool = True
    """Look for pictures that are there more than once."""

    out: str | None = None
    """.json file for the report; default prints only, and cuts long lists."""

    overwrite: bool = False
    """Replace that file."""
