"""Which published data set a folder holds."""

from __future__ import annotations

from pathlib import Path

from attention_transfer.data.layouts.aircraft import AIRCRAFT
from attention_transfer.data.layouts.cars import CARS
from attention_transfer.data.layouts.cub import CUB
from attention_transfer.data.layouts.dogs import DOGS
from attention_transfer.data.layouts.imagenet import IMAGENET
from attention_transfer.data.layouts.inaturalist import INATURALIST
from attention_transfer.data.layouts.layout import Layout
from attention_transfer.data.layouts.pets import PETS
from attention_transfer.data.layouts.voc import VOC
from attention_transfer.errors import UserError

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (CUB, CARS, AIRCRAFT, DOGS, PETS, *INATURALIST, IMAGENET, VOC)
}


def find_layout(path: Path) -> Layout | None:
    """The layout of a folder, or of the one folder that its archive made in it; `None` if none is recognised.

    Raises:
        UserError: the folder holds several data sets.
    """
    found = [layout for layout in LAYOUTS.values() if layout.recognises(path)]
    if len(found) > 1:
        titles = " and ".join(layout.title for layout in found)
        raise UserError(f"{path} holds {titles}; name the folder of one of them")
    return found[0] if found else None
