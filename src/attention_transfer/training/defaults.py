"""Formulas for the settings that a recipe leaves open, from what is trained, each with its reason.

The facts are the start (random weights, pre-trained ones, or pre-trained ones of which the head alone is trained), the
size of the network, and the number of images. docs/methods.md has the same as a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from attention_transfer.config.choices import AUTO
from attention_transfer.config.recipe import Recipe, ResolvedRecipe, completed
from attention_transfer.data import choose_augment
from attention_transfer.engine.precision import choose_precision
from attention_transfer.vit import Part, ViTSpec

Start = Literal["random", "pretrained", "head", "mae"]
"""What training starts from: random weights, pre-trained weights, pre-trained weights of which the head alone is
trained, or, for masked autoencoding, random weights without labels."""

_STARTS: dict[Start, str] = {
    "random": "random weights",
    "pretrained": "pre-trained weights",
    "head": "a new head on frozen features",
    "mae": "masked autoencoding",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a recipe follows from.

    Attributes:
        start: what training begins with.
        width: features of a token.
        depth: blocks.
        images: training images, at least 1; the labelled ones where there are labels.
        anchored: a rule keeps the weights near their start.
        weights: of the network, their number.
        device: what it is trained on: "cpu", "cuda" or "mps".
    """

    start: Start
    width: int
    depth: int
    images: int
    anchored: bool = False
    weights: int = 0
    device: str = "cpu"

    def __str__(self) -> str:
        labelled = "" if self.start == "mae" else "labelled "
        return f"{_STARTS[self.start]}, {self.depth} blocks of width {self.width}, {self.images:,} {labelled}images"


@dataclass(frozen=True)
class _Length:
    """How long to train: passes over many images, or steps over few, whichever is more."""

    epochs: int
    steps: int


# Few images: what the smallest budget needs to flatten. Many: fine-tuning of MAE takes 50 to 100 epochs with mixing and
# heavy augmentation, 30 are enough with light ones; DeiT's 300 from random weights are what a big budget gets.
_LENGTHS: dict[Start, _Length] = {
    "random": _Length(100, 500),
    "pretrained": _Length(30, 200),
    "head": _Length(30, 200),
    "mae": _Length(200, 5000),
}


def start_of(init: str, init_parts: Sequence[Part], trained: Sequence[Part]) -> Start:
    """What training starts from. Weights count as pre-trained only if all blocks are, for parts alone do not fit."""
    if init == "random" or not (not init_parts or {"all", "blocks"} & {*init_parts}):
        return "random"
    return "head" if [*trained] == ["head"] else "pretrained"


def resolve(recipe: Recipe, facts: Facts, spec: ViTSpec) -> ResolvedRecipe:
    """Fill in everything that a recipe leaves open.

    Args:
        recipe: what was asked for; its own values are kept.
        facts: what is trained.
        spec: the network, for the augmentation.
    """
    batch = _batch(facts) if recipe.batch_size == AUTO else recipe.batch_size
    epochs = _epochs(facts, batch) if recipe.epochs == AUTO else recipe.epochs
    steps = epochs * math.ceil(facts.images / batch)
    values = {
        "batch_size": batch,
        "epochs": epochs,
        "lr": _rate(facts, batch),
        "head_lr": _head_factor(facts),
        "layer_decay": _layer_decay(facts),
        "weight_decay": _weight_decay(facts),
        "drop_path": _drop_path(facts),
        "label_smoothing": 0.1 if facts.start in ("random", "pretrained") else 0.0,  # as MAE, DeiT and BEiT have it
        "ema_decay": _average(steps),
        "validate_every": _validate_every(epochs),
        "precision": choose_precision(facts.device, facts.weights).precision,
        "augment": choose_augment(spec, recipe.augment, facts.images)[0],
    }
    return completed(recipe, values)


def explained(asked: Recipe, resolved: ResolvedRecipe, facts: Facts) -> str:
    """The values that were left open, in one line with their reason; empty if everything was given."""
    left = [f.name for f in fields(asked) if getattr(asked, f.name) == AUTO != getattr(resolved, f.name)]
    values = [f"{key.replace('_', ' ')} {_shown(getattr(resolved, key))}" for key in left]
    if "precision" in left:
        values[left.index("precision")] += f", as {choose_precision(facts.device, facts.weights).reason}"
    steps = resolved.epochs * math.ceil(facts.images / resolved.batch_size)
    return f"{', '.join(values)} ({facts}: {steps:,} steps)" if values else ""


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _batch(facts: Facts) -> int:
    """About 32 images, a hundredth of the set where that is more, at most 512; equal batches, a multiple of 8.

    Few images want many steps, many want wide ones. Up to eight devices share a multiple of 8.
    """
    least = 64 if facts.start == "mae" else 32
    about = min(max(least, int(2 ** round(math.log2(facts.images / 100)))), 512)
    batches = max(1, round(facts.images / about))
    return min(8 * math.ceil(facts.images / batches / 8), 512)


def _epochs(facts: Facts, batch: int) -> int:
    """Enough passes for many images and enough steps for few; ten equal parts, so that ten validations fit."""
    length = _LENGTHS[facts.start]
    epochs = max(length.epochs, length.steps / math.ceil(facts.images / batch))
    return 10 * math.ceil(epochs / 10)


def _rate(facts: Facts, batch: int) -> float:
    """Peak learning rate of AdamW, two digits.

    With the root of the batch, which is the rule for Adam (Malladi et al. 2022, arXiv 2205.10287), and down with the
    width (Yang et al. 2022, arXiv 2203.03466). At ViT-S and 32 images: 1e-4 from pre-trained weights, 5e-4 from random
    ones, 1e-3 for a head on frozen features (our grid of 3e-4 to 1e-2, on features of one crop: higher ones fit the
    few images by heart). Pre-trained networks narrower than ViT-S bear more, and need it: at width 64 our grid of
    factors of three has its best at 8e-3 for 40 images and destroys the network at 2.6e-2 (digits on photographs, 20
    labels a class); the exponent keeps a quarter below the best, on the safe side.
    Masked autoencoding: 2.4e-3 at a batch of 4096 for ViT-L (He et al. 2022), by the roots of both.
    """
    narrow = 384 / facts.width
    rate = {
        "pretrained": 1e-4 * narrow ** (2.2 if narrow > 1 else 1) * math.sqrt(batch / 32),
        "random": 5e-4 * narrow * math.sqrt(batch / 32),
        "head": 1e-3 * narrow * math.sqrt(batch / 32),
        "mae": 2.4e-3 * math.sqrt(batch / 4096) * math.sqrt(1024 / facts.width),
    }[facts.start]
    return float(f"{rate:.1e}")


def _head_factor(facts: Facts) -> float:
    """A new head starts near 0 and has further to go than pre-trained weights (LP-FT; arXiv 2202.10054).

    With 10 it has the rate of a head that is trained alone.
    """
    return 10.0 if facts.start == "pretrained" else 1.0


def _layer_decay(facts: Facts) -> float:
    """0.75 at 12 blocks, as BEiT and MAE fine-tune.

    Deeper ones have the same from end to end: 0.866 at 24. Shallow ones hardly have layers that are general enough to
    be spared: 0.909 at 4, where our grid has its best at 1 (digits on photographs).
    """
    if facts.start != "pretrained":
        return 1.0
    return round(float(0.75 ** min(facts.depth / 12, 12 / facts.depth)), 3)


def _weight_decay(facts: Facts) -> float:
    """0.05, as MAE, DeiT and BEiT have it; none where a rule pulls to the start, or the head alone is trained."""
    return 0.0 if facts.anchored or facts.start == "head" else 0.05


def _drop_path(facts: Facts) -> float:
    """0.1 at 12 blocks and 0.2 at 24 (MAE, DeiT), where there are enough images and steps to make up for the noise."""
    if facts.start in ("head", "mae") or facts.images < 10_000:
        return 0.0
    return round(min(0.3, 0.1 * facts.depth / 12), 2)


def _average(steps: int) -> float:
    """An average over the last tenth of the steps; Li et al. 2024 have 0.9999 at some 100,000 steps."""
    return round(min(max(1 - 10 / steps, 0.5), 0.9999), 5)


def _validate_every(epochs: int) -> int:
    """Ten validations, or as near as a divisor of the epochs comes."""
    divisors = [d for n in range(1, math.isqrt(epochs) + 1) if epochs % n == 0 for d in (n, epochs // n)]
    return min(divisors, key=lambda n: (abs(math.log(epochs / n / 10)), n))
