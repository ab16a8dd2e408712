"""One Lightning module for every objective: scratch, fine-tuning, copy, distillation, guidance, pre-training."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from attention_transfer.training.objective import Objective
from attention_transfer.training.recipe import Recipe
from attention_transfer.vit import anatomy, parameters_of, unwrapped

Batch = tuple[Tensor, Tensor]


class ObjectiveModule(L.LightningModule):
    """Runs an objective in Lightning's loop. It knows losses and logits, not methods.

    Args:
        objective: the module that is trained; see `Objective`.
        recipe: optimisation settings.
        steps: optimiser steps of the whole training, for the schedule.
        classes: number of classes, or `None` for an objective without labels.
        prepare: what turns a batch of pixels, uint8, into the network's input, on the device; `None` leaves it.
    """

    def __init__(
        self,
        objective: nn.Module,
        recipe: Recipe,
        *,
        steps: int,
        classes: int | None = None,
        prepare: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.prepare = nn.Identity() if prepare is None else prepare
        self.recipe = recipe
        self.steps = steps
        self.scores = nn.ModuleDict()
        if classes is not None:
            for stage in ("validation", "test"):
                self.scores[f"{stage}/accuracy"] = MulticlassAccuracy(classes, average="micro")
                self.scores[f"{stage}/calibration_error"] = MulticlassCalibrationError(classes, n_bins=15)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Normalise on the device, to which a quarter of the bytes have travelled."""
        images, targets = batch
        return self.prepare(images), targets

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """One step; logs every term of the loss, averaged over the epoch."""
        images, targets = batch
        advance = getattr(self.objective, "advance", None)
        if advance is not None:
            advance(self.global_step / self.steps)
        output = cast(Objective, self.objective)(images, targets)
        self._log("train", {"loss": output.loss, **output.losses}, len(images))
        return output.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Loss terms and, where there are logits, accuracy and calibration."""
        self._evaluate("validation", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """The same on the test split."""
        self._evaluate("test", batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """In the first `recipe.head_epochs`, leave everything but the classification layer as it is."""
        if self.current_epoch >= self.recipe.head_epochs:
            return
        vit = cast(Objective, self.objective).vit
        named = dict(unwrapped(vit).named_parameters())
        heads = {id(named[name]) for name in parameters_of(vit, "head")}
        for parameter in self.objective.parameters():
            if id(parameter) not in heads:
                parameter.grad = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with decay groups; linear warm-up and half a cosine, as factors on each group's learning rate."""
        recipe = self.recipe
        groups = parameter_groups(
            self.objective, lr=recipe.peak_lr, decay=recipe.weight_decay, layers=recipe.layer_decay
        )
        optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(recipe.beta1, recipe.beta2), fused=True)
        optimizer.register_step_pre_hook(decay_used_rows)
        factor = partial(warmup_cosine, steps=self.steps, warmup=round(recipe.warmup * self.steps), floor=recipe.min_lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _evaluate(self, stage: str, batch: Batch) -> None:
        images, targets = batch
        output = cast(Objective, self.objective)(images, targets)
        self._log(stage, {"loss": output.loss, **output.losses}, len(images))
        if output.logits is None:
            return
        self._log(stage, {"cross_entropy": F.cross_entropy(output.logits, targets)}, len(images))
        for name, score in self.scores.items():
            if name.startswith(stage):
                cast(Any, score).update(output.logits.softmax(dim=-1), targets)
                self.log(name, cast(Any, score), on_epoch=True)

    def _log(self, stage: str, values: dict[str, Tensor], batch_size: int) -> None:
        self.log_dict(
            {f"{stage}/{name}": value.detach() for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=batch_size,
        )


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """Factor on the peak learning rate before step `step` of `steps`, counted from 0.

    Rises linearly to 1 over the `warmup` first steps, then falls along half a cosine to `floor` at the last.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(objective: nn.Module, *, lr: float, decay: float, layers: float) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices decay, biases, norms and tokens do not; blocks by layer-wise decay."""
    vit: Any = cast(Objective, objective).vit
    tokens = tuple(vit.no_weight_decay()) if hasattr(vit, "no_weight_decay") else _tokens_of(vit)
    groups: list[dict[str, Any]]
    if layers == 1:
        groups = param_groups_weight_decay(vit, weight_decay=decay, no_weight_decay_list=tokens)
    elif hasattr(vit, "group_matcher"):
        groups = param_groups_layer_decay(vit, weight_decay=decay, no_weight_decay_list=tokens, layer_decay=layers)
    else:
        groups = _layer_decay_groups(vit, decay, tokens, layers)
    in_vit = {id(p) for p in vit.parameters()}
    rest = [p for p in objective.parameters() if p.requires_grad and id(p) not in in_vit]
    if rest:
        groups.append({"params": [p for p in rest if p.ndim > 1], "weight_decay": decay})
        groups.append({"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0})
    chosen = [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": lr * group.get("lr_scale", 1.0)}
        for group in groups
        if group["params"]
    ]
    unused_rows = getattr(objective, "unused_rows", None)
    return _sparing(chosen, unused_rows() if unused_rows is not None else [])


def decay_used_rows(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Decoupled weight decay of parameters of which some rows are not trained, before a step: these stay."""
    for group in optimizer.param_groups:
        if "spared" not in group:
            continue
        for parameter in [p for p in group["params"] if p.grad is not None]:
            factor = torch.full_like(parameter[:, :1], 1 - group["lr"] * group["used_decay"])
            for start, stop in group["spared"]:
                factor[start:stop] = 1
            with torch.no_grad():
                parameter.mul_(factor)


def _sparing(groups: list[dict[str, Any]], unused: list[tuple[nn.Parameter, slice]]) -> list[dict[str, Any]]:
    """The groups, in which parameters with untrained rows have one of their own, decayed by `decay_used_rows`."""
    rows: dict[int, list[list[int]]] = {}
    for parameter, place in unused:
        start, stop, _ = place.indices(len(parameter))
        rows.setdefault(id(parameter), []).append([start, stop])
    spared = []
    for group in groups:
        partly = [p for p in group["params"] if id(p) in rows and group["weight_decay"] > 0]
        group["params"] = [p for p in group["params"] if not any(p is q for q in partly)]
        for parameter in partly:
            own = {"spared": rows[id(parameter)], "used_decay": group["weight_decay"]}
            spared.append({"params": [parameter], "weight_decay": 0.0, "lr": group["lr"], **own})
    return [group for group in groups if group["params"]] + spared


def _tokens_of(vit: nn.Module) -> tuple[str, ...]:
    """Class token, registers and position embeddings of a model that does not name them itself."""
    return tuple(
        name for name, _ in vit.named_parameters() if re.search(r"token|position|pos_embed|class_embedding", name)
    )


def _layer_decay_groups(vit: nn.Module, decay: float, tokens: tuple[str, ...], layers: float) -> list[dict[str, Any]]:
    """As timm's groups: embeddings are layer 0, block i is layer i + 1, norm and head are the last."""
    blocks = anatomy(vit).blocks
    layer_of = {id(p): i + 1 for i, block in enumerate(blocks) for p in block.parameters()}
    before, groups = True, []
    for name, parameter in vit.named_parameters():
        before = before and id(parameter) not in layer_of
        layer = layer_of.get(id(parameter), 0 if before else len(blocks) + 1)
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in tokens
            scale = layers ** (len(blocks) + 1 - layer)
            groups.append({"params": [parameter], "weight_decay": decay if decays else 0.0, "lr_scale": scale})
    return groups
