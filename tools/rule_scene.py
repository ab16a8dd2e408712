"""What the pictures of the rules are of: a small real teacher, the digits, and students trained for some seconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer import AttentionCall, AttentionTransfer, Rule, capture, describe, load_vit
from attention_transfer.data import digits, eval_transform

SHOTS, STEPS = 5, 300


@dataclass(frozen=True)
class Scene:
    """A teacher, labelled images to learn from, and images to look at."""

    teacher: nn.Module
    images: Tensor
    labels: Tensor
    shown: Tensor
    shown_labels: Tensor

    def of(self, label: int) -> Tensor:
        """The first image to look at of a class, (1, 1, 8, 8)."""
        return self.shown[int((self.shown_labels == label).nonzero()[0])][None]


def read_scene(folder: Path) -> Scene:
    """The teacher with the digits."""
    teacher = load_vit(str(folder))
    splits, transform = digits(), eval_transform(describe(teacher))
    few = np.sort(np.concatenate([np.flatnonzero(splits.train.labels == c)[:SHOTS] for c in range(10)]))
    images, labels = splits.train.take(few).with_transform(transform).materialised().tensors
    shown, shown_labels = splits.test.with_transform(transform).materialised().tensors
    return Scene(teacher, images, labels, shown, shown_labels)


def fit(
    scene: Scene,
    student: nn.Module,
    rules: Sequence[Rule],
    *,
    teacher: nn.Module | None = None,
    steps: int = STEPS,
    each: Callable[[nn.Module], object] = lambda _: None,
) -> AttentionTransfer:
    """Train a student on all labelled images at once; `each` is called with it after every step."""
    taught = any(rule.needs_teacher for rule in rules)
    transfer = AttentionTransfer((teacher or copy.deepcopy(scene.teacher)) if taught else None, student, rules).train()
    optimizer = torch.optim.AdamW(transfer.parameters(), lr=2e-3)
    for _ in range(steps):
        output = transfer(scene.images)
        optimizer.zero_grad()
        output.total(F.cross_entropy(output.logits, scene.labels)).backward()
        torch.nn.utils.clip_grad_norm_(transfer.parameters(), 1.0)
        optimizer.step()
        each(student)
    return transfer.eval()


@torch.no_grad()
def last_call(model: nn.Module, image: Tensor) -> AttentionCall:
    """The last block's attention for one image."""
    with capture(model.eval(), layers=[-1]) as calls:
        model(image)
    return calls[0]


def show(axis: Axes, values: Any, title: str, *, cmap: str = "inferno", **settings: Any) -> None:
    """A matrix, without axes."""
    axis.imshow(np.asarray(values), cmap=cmap, interpolation="nearest", **settings)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def over(axis: Axes, image: Tensor, patches: Tensor, title: str, *, top: float, cmap: str = "inferno") -> None:
    """What the patches get, (rows · columns), over the image; `top` is the value of the brightest colour."""
    pixels, size = image[0, 0].numpy(), image.shape[-1]
    show(axis, pixels, title, cmap="gray", vmin=-1, vmax=1)
    side = int(len(patches) ** 0.5)
    extent = (-0.5, size - 0.5, size - 0.5, -0.5)
    axis.imshow(patches.reshape(side, side), cmap=cmap, alpha=0.72, extent=extent, vmin=0, vmax=top)


def box(axis: Axes, x: float, y: float, text: str, *, shade: str = "#000000", off: bool = False) -> None:
    """A labelled box of 9 × 5 around a point; `off` is grey and dashed."""
    edge = "#b0b0b0" if off else shade
    dashes = (0, (3, 2)) if off else "solid"
    patch = FancyBboxPatch((x - 4.5, y - 2.5), 9, 5, boxstyle="round,pad=0.2", fc="white", ec=edge, ls=dashes, lw=1.3)
    axis.add_patch(patch)
    axis.text(x, y, text, ha="center", va="center", fontsize=10, color=edge)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], shade: str = "#000000") -> None:
    """From one point to another."""
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": shade, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    )


def thumbnail(figure_axis: Axes, place: tuple[float, float, float, float], values: Any, cmap: str, note: str) -> None:
    """A small matrix at (left, bottom, width, height) of the drawing, with a note below it."""
    axis = figure_axis.inset_axes(place, transform=figure_axis.transData)
    show(axis, values, "", cmap=cmap, aspect="auto")
    axis.set_xlabel(note, fontsize=8, labelpad=3)
