"""Where the self-supervised ViT-S/14 looks, on photographs in the public domain: the picture of the README.

    python -m benchmarks.photos.draw PREPARED OUT.png

PREPARED is what `prepare.py` made; the photographs are those of the package.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from attention_transfer.data import Normalise, eval_pixels
from attention_transfer.viewing import save
from attention_transfer.vit import capture, describe, load_vit, patch_attention

PHOTOGRAPHS = ("chelsea", "rocket", "coffee", "astronaut")
SIDE = 448  # pixels that the network sees


def main() -> None:
    """Draw the photographs, and the attention of the last block over them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    vit = load_vit(str(args.prepared / "vit_small_patch14.safetensors"), image_size=SIDE)
    figure = Figure(figsize=(2.3 * len(PHOTOGRAPHS), 4.7), layout="constrained")
    for place, name in enumerate(PHOTOGRAPHS, start=1):
        content = files("attention_transfer.data").joinpath("photographs", f"{name}.jpg").read_bytes()
        photograph = eval_pixels(describe(vit))(Image.open(BytesIO(content), formats=["JPEG"]).convert("RGB"))
        with torch.no_grad(), capture(vit, layers=[-1]) as calls:
            vit(Normalise(describe(vit))(photograph)[None])
        seen = patch_attention(calls[0], describe(vit))[0]
        above, below = (
            figure.add_subplot(2, len(PHOTOGRAPHS), place),
            figure.add_subplot(2, len(PHOTOGRAPHS), 4 + place),
        )
        for axis in (above, below):
            axis.imshow(photograph.permute(1, 2, 0).numpy())
            axis.set_axis_off()
        below.imshow(
            seen.clamp_max(seen.quantile(0.99)), "inferno", alpha=0.72, extent=(-0.5, SIDE - 0.5, SIDE - 0.5, -0.5)
        )
    save(figure, args.out)


if __name__ == "__main__":
    main()
