"""Draw the pictures of the pages on segmentation, similarity, attribution and shift, docs/assets/protocols/*.png.

    python tools/draw_protocols.py [--out docs/assets/protocols]

Every map and number is of `builtin/vit_characters` on photographs with digits, and the corrupted photograph one of
scikit-learn's; nothing is downloaded, and it takes less than a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from attention_transfer import capture, describe, load_vit, relevance, rollout
from attention_transfer.data import Normalise, Split, eval_pixels
from attention_transfer.data.corruptions import CORRUPTIONS, corrupted, fitted
from attention_transfer.data.scenes import digit_scenes
from attention_transfer.evaluation import segment, similarity
from attention_transfer.evaluation.foreground import foreground
from attention_transfer.viewing.style import save, style


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/assets/protocols"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = load_vit("builtin/vit_characters").eval()
    scenes = digit_scenes().test.take(np.arange(0, 450, 15))
    with style():
        print(save(draw_segmentation(model, scenes), out / "segmentation.png"))
        print(save(draw_similarity(model, scenes), out / "similarity.png"))
        print(save(draw_attribution(model, scenes), out / "attribution.png"))
        photographs = save(draw_corruptions(), out / "corruptions.png")
        Image.open(photographs).quantize().save(photographs, optimize=True)  # 256 colours: a third of the bytes
        print(photographs)


def draw_segmentation(model: nn.Module, scenes: Split) -> Figure:
    """An image, its mask, each head's foreground, the merged one, and every protocol's score on 30 images."""
    assert scenes.masks is not None
    index = 4
    maps = class_rows(model, scenes, index)
    heads = len(maps)
    everything = torch.cat([maps, maps.mean(dim=0, keepdim=True)])
    found = foreground(everything)
    figure = Figure(figsize=(1.35 * (heads + 3) + 2.6, 1.9), layout="constrained")
    axes = figure.subplots(1, heads + 4, width_ratios=[1] * (heads + 3) + [1.9])
    picture(axes[0], np.asarray(scenes.images[index]), "image")
    picture(axes[1], scenes.masks[index], "mask")
    for i, (axis, patches) in enumerate(zip(axes[2:], found, strict=False)):
        picture(axis, patches.numpy(), f"head {i}" if i < heads else "merged")
    result = segment(model, scenes.images, scenes.masks, layers=1)[0]
    names = list(result.scores)
    bars = axes[-1]
    values = [result.scores[name].value for name in names]
    low = [value - (result.scores[name].low or value) for name, value in zip(names, values, strict=True)]
    high = [(result.scores[name].high or value) - value for name, value in zip(names, values, strict=True)]
    bars.barh(names, values, xerr=[low, high], color=["#e69f00", "#0072b2", "#56b4e9", "#7f7f7f"])
    bars.invert_yaxis()
    bars.set_title("Jaccard, 30 images", fontsize=9)
    bars.tick_params(labelsize=8)
    return figure


def draw_similarity(model: nn.Module, scenes: Split) -> Figure:
    """Divergence and CKA of the network and of one of its shape with random weights."""
    torch.manual_seed(0)
    other = load_vit("builtin/vit_characters", pretrained=False).eval()
    found = similarity(model, other, scenes.images, rows="all", batch=15)
    own = similarity(model, model, scenes.images, rows="all", batch=15)
    assert found.cka is not None and own.cka is not None
    panels = (
        ("JS, averaged heads\nwith itself", own.js.averaged, 0.0, float(np.log(2))),
        ("JS, averaged heads\nwith random weights", found.js.averaged, 0.0, float(np.log(2))),
        ("CKA\nwith itself", own.cka, 0.0, 1.0),
        ("CKA\nwith random weights", found.cka, 0.0, 1.0),
    )
    figure = Figure(figsize=(9.2, 2.4), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].set_ylabel("block of A", fontsize=8)
    for axis, (title, matrix, low, high) in zip(axes, panels, strict=True):
        drawn = axis.imshow(np.array(matrix), vmin=low, vmax=high, cmap="viridis", origin="lower")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("block of B", fontsize=8)
        axis.grid(visible=False)
        axis.tick_params(labelsize=7)
        figure.colorbar(drawn, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
    return figure


def draw_attribution(model: nn.Module, scenes: Split) -> Figure:
    """The last block's attention, rollout, and relevance for the class that is predicted and for another."""
    index = 4
    pixels = inputs(model, scenes, index)
    with torch.no_grad():
        predicted = int(model(pixels).argmax())
    other = (predicted + 1) % describe(model).classes
    maps: list[tuple[str, NDArray[np.generic] | Tensor]] = [
        ("image", np.asarray(scenes.images[index])),
        ("last block,\nmean over heads", class_rows(model, scenes, index).mean(dim=0)),
        ("rollout", rollout(model, pixels)[0]),
        ("relevance,\npredicted class", relevance(model, pixels)[0]),
        ("relevance,\nanother class", relevance(model, pixels, other)[0]),
    ]
    figure = Figure(figsize=(8.6, 2.1), layout="constrained")
    for axis, (title, shown) in zip(figure.subplots(1, len(maps)), maps, strict=True):
        picture(axis, np.asarray(shown), title)
    return figure


def draw_corruptions() -> Figure:
    """A photograph under each corruption, at severity 4."""
    photograph = fitted(Image.fromarray(load_sample_image("china.jpg")).crop((100, 0, 500, 400)))
    figure = Figure(figsize=(6.2, 4.3), layout="constrained")
    for axis, kind in zip(figure.subplots(3, 5).flat, CORRUPTIONS, strict=True):
        shown = corrupted(photograph, kind, 4, np.random.default_rng(0))
        picture(axis, np.asarray(shown.resize((112, 112))), kind.replace("_", " "))
    return figure


def inputs(model: nn.Module, scenes: Split, index: int) -> Tensor:
    """An image as the network's input, a batch of one."""
    spec = describe(model)
    batch: Tensor = Normalise(spec)(eval_pixels(spec)(scenes.images[index]))[None]
    return batch


def class_rows(model: nn.Module, scenes: Split, index: int) -> Tensor:
    """The class token's attention to the patches in the last block, (heads, rows, columns)."""
    spec = describe(model)
    with torch.no_grad(), capture(model, layers=1) as calls:
        model(inputs(model, scenes, index))
    rows: Tensor = calls[0].maps()[0, :, 0, spec.tokens.patches(spec.sequence)].unflatten(1, spec.grid)
    return rows


def picture(axis: Axes, values: NDArray[np.generic], title: str) -> None:
    """An image or a map, without ticks."""
    axis.imshow(values, cmap="inferno")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


if __name__ == "__main__":
    main()
