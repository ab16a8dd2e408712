"""How a network is trained: one typed record for every method, of which most is left to what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from attention_transfer.config.base import Config
from attention_transfer.config.choices import AUTO, Augment, Auto, Precision, TransMix
from attention_transfer.config.mixing import Mixing
from attention_transfer.errors import nearest

_MOST_EPOCHS = 1_000_000  # more are a slip of the hand, and would be counted for ever


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """Optimisation settings. What is "auto" follows from the network, its start and the number of images.

    The [formulas](methods.md#recipes-that-fit-what-they-train) are in `training/defaults.py`; the values that they come
    to are printed and stand in the run's `config.yaml`.
    """

    epochs: int | Auto = AUTO
    """Passes over the training images."""

    batch_size: int | Auto = AUTO
    """Images of one optimiser step, over all devices; the last batch of an epoch may be smaller."""

    lr: float | Auto = AUTO
    """Peak learning rate of AdamW."""

    lr_base_size: int | None = None
    """Batch size that lr is meant for; at another one it is scaled in proportion; `None` takes it as is."""

    min_lr: float = 0.01
    """Learning rate at the end, as a fraction of the peak, so that the schedule never rises after warm-up."""

    warmup: float = 0.1
    """Share of the steps in which the learning rate rises linearly to its peak; half a cosine follows."""

    weight_decay: float | Auto = AUTO
    """Decoupled decay of matrices; biases, norms and tokens do not decay."""

    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""

    beta2: float = 0.999
    """AdamW's decay of the mean squared gradient."""

    layer_decay: float | Auto = AUTO
    """Learning rate of each block as a fraction of the next one's; 1 is the same for all."""

    head_lr: float | Auto = AUTO
    """Factor on the learning rate of the classification layer."""

    clip_grad: float | None = 1.0
    """Largest norm of the gradient; `None` does not clip."""

    label_smoothing: float | Auto = AUTO
    """Share of each label that is spread over all classes."""

    ema_decay: float | Auto | None = AUTO
    """Decay of the exponential moving average of the weights, which is what is validated and kept; warmed up as
    min(decay, (1 + step) / (10 + step)); `None` keeps the raw weights."""

    augment: Augment = "auto"
    """How training images are varied: none, shift, light, medium, heavy, or auto, by model and data."""

    mixup: float = 0.0
    """Α of the Beta(α, α) from which mixup draws a batch's share; 0 is off."""

    cutmix: float = 0.0
    """Α for the share of CutMix; 0 is off."""

    mix_probability: float = 1.0
    """Share of the batches that are mixed."""

    mix_switch: float = 0.5
    """Share of the mixed batches that CutMix mixes, where mixup is on too."""

    transmix: TransMix = "off"
    """Whose attention weighs the labels of CutMix (TransMix): off, student or teacher."""

    head_epochs: int = 0
    """Epochs at the beginning in which the classification layer alone is trained."""

    drop_path: float | Auto = AUTO
    """Stochastic depth of the student's last block, linearly less before it."""

    share_drop_path: bool = False
    """Drop the same branches in the teacher, as the paper does; needs drop_path above 0 and rules."""

    validate_every: int | Auto = AUTO
    """Epochs between validations and checkpoints; the last epoch always has one."""

    keep_epochs: bool = False
    """Keep the weights of every validation (checkpoints/epoch-N.ckpt), e.g. to see how attention changes; each takes
    as much of the disk as the model."""

    early_stopping: int | None = None
    """Validations in a row without a better one after which training ends; `None` never does."""

    balanced: bool = False
    """Draw as many images of each class as of any other: with replacement, weighted by 1 / class count."""

    accumulate: int = 1
    """Micro-batches that each device cuts its share of a batch into, to save memory; their gradients are weighted by
    their sizes, so that the step is the same but for rounding and for what a forward draws."""

    precision: Precision | Auto = AUTO
    """Numbers of the forward and backward pass: fp32, bf16, or fp16 with a scaled loss; weights stay float32. auto
    takes bf16 where the processor multiplies it and the network is not small."""

    compile: bool = False
    """Run the objective through `torch.compile`."""

    checkpoint_gradients: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""

    workers: int | None = None
    """Processes that load images on each device; 0 loads in the training process, `None` chooses by the images and the
    cores. The augmentation of an image is the same for any number but 0."""

    @property
    def mixing(self) -> Mixing:
        """How batches are mixed."""
        return Mixing(
            mixup=self.mixup,
            cutmix=self.cutmix,
            mix_probability=self.mix_probability,
            mix_switch=self.mix_switch,
            transmix=self.transmix,
        )

    def problems(self) -> list[str]:
        """What is wrong with the settings, a sentence each."""
        bounds = {
            "epochs": (1, _MOST_EPOCHS),
            "batch_size": (1, float("inf")),
            "lr": (1e-12, float("inf")),
            "lr_base_size": (1, float("inf")),
            "min_lr": (0, 1),
            "warmup": (0, 1),
            "weight_decay": (0, float("inf")),
            "beta1": (0, 1 - 1e-9),
            "beta2": (0, 1 - 1e-9),
            "layer_decay": (1e-9, 1),
            "clip_grad": (1e-12, float("inf")),
            "label_smoothing": (0, 1 - 1e-9),
            "ema_decay": (0, 1 - 1e-9),
            "head_lr": (1e-9, float("inf")),
            "head_epochs": (0, float("inf") if self.epochs == AUTO else max(0, self.epochs - 1)),
            "drop_path": (0, 1 - 1e-9),
            "validate_every": (1, float("inf")),
            "early_stopping": (1, float("inf")),
            "accumulate": (1, float("inf")),
            "workers": (0, float("inf")),
        }
        found = [
            f"recipe.{f.name} is {value}; give a number {_range(low, high)}"
            for f in fields(self)
            if f.name in bounds and (value := getattr(self, f.name)) not in (None, AUTO)
            for low, high in [bounds[f.name]]
            if not low <= value <= high  # also refuses NaN
        ]
        precisions = (AUTO, *get_args(Precision))
        if self.precision not in precisions:
            found.append(f"recipe.precision is {self.precision!r}; {nearest(self.precision, precisions)}")
        if self.lr == AUTO and self.lr_base_size is not None:
            found.append("recipe.lr_base_size is the batch size that a given lr is meant for; give lr, too")
        if self.batch_size != AUTO and min(self.batch_size, self.accumulate) >= 1 and self.batch_size % self.accumulate:
            found.append(
                f"recipe.batch_size {self.batch_size} can't be cut into {self.accumulate} equal micro-batches; "
                "choose an accumulate that divides it"
            )
        return found + [f"recipe.{problem}" for problem in self.mixing.problems()]


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe(Recipe):
    """A recipe of which nothing is left open: what the engine trains by.

    The defaults are for whoever calls the engine; the verbs fill a `Recipe` by what is trained.
    """

    epochs: int = 200
    batch_size: int = 50
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    head_lr: float = 1.0
    label_smoothing: float = 0.1
    ema_decay: float | None = 0.99
    drop_path: float = 0.0
    validate_every: int = 20
    precision: Precision = "fp32"

    @property
    def peak_lr(self) -> float:
        """Learning rate at the peak, for the batch size in use."""
        return self.lr if self.lr_base_size is None else self.lr * self.batch_size / self.lr_base_size


def completed(recipe: Recipe, values: Mapping[str, Any]) -> ResolvedRecipe:
    """The recipe with these values where it leaves them open; what it gives is kept."""
    given = {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    return ResolvedRecipe(**{k: values[k] if value == AUTO and k in values else value for k, value in given.items()})


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values where it leaves them open, which may leave others."""
    return replace(recipe, **{key: value for key, value in values.items() if getattr(recipe, key) == AUTO})


def _range(low: float, high: float) -> str:
    lowest = f"of at least {low:g}" if low > 1e-6 or low == 0 else "above 0"
    if high == float("inf"):
        return lowest
    return f"{lowest} and below 1" if 0.5 < high < 1 else f"{lowest} and at most {_written(high)}"


def _written(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:g}"
