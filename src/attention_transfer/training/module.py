"""One Lightning module for every objective: scratch, fine-tuning, copy, distillation, guidance, pre-training."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from attention_transfer.config.recipe import ResolvedRecipe
from attention_transfer.training.finite import all_finite, not_finite
from attention_transfer.training.objective import Objective
from attention_transfer.training.samplers import Share
from attention_transfer.training.sharding import Sharded, as_placed, in_one_piece, shard
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
        micro_batch: images a forward and backward pass at most; `None` takes a batch whole.
        share: which share of the batch with a number in its epoch this process has; `None` is all of it.
    """

    def __init__(
        self,
        objective: nn.Module,
        recipe: ResolvedRecipe,
        *,
        steps: int,
        classes: int | None = None,
        prepare: nn.Module | None = None,
        micro_batch: int | None = None,
        share: Callable[[int], Share] | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.prepare = nn.Identity() if prepare is None else prepare
        self.recipe = recipe
        self.steps = steps
        self.micro_batch = micro_batch
        self._share = share
        self._seen: dict[str, list[Tensor]] = {}  # the step's loss and its terms, by micro-batch
        self._grad_norm: Tensor | None = None
        self.evaluating = False  # where memory ran out, if it did
        self.scores = nn.ModuleDict()
        if classes is not None:
            for stage in ("validation", "test"):
                self.scores[f"{stage}/accuracy"] = MulticlassAccuracy(classes, average="micro")
                self.scores[f"{stage}/calibration_error"] = MulticlassCalibrationError(classes, n_bins=15)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Normalise on the device, to which a quarter of the bytes have travelled."""
        images, targets = batch
        return self.prepare(images), targets

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; logs every term of the loss, averaged over the epoch.

        The batch is cut into micro-batches. The gradients of all but the last, whose loss is returned, are formed here.
        """
        self.evaluating = False
        images, targets = batch
        advance = getattr(self.objective, "advance", None)
        if advance is not None:
            advance(self.global_step / self.steps)
        cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False)).zero_grad()
        self._seen = {}
        share = Share(len(images), len(images)) if self._share is None else self._share(batch_idx)
        size = self.micro_batch or len(images)
        cut = getattr(self.objective, "cut", None)
        parts = zip(images.split(size), targets.split(size), strict=True) if cut is None else cut(images, targets, size)
        *first, last = parts
        for part in first:
            loss = self._weighted_loss(part, share)
            with torch.autocast(self.device.type, enabled=False):
                self.trainer.strategy.backward(loss, None)
        return self._weighted_loss(last, share)

    def _weighted_loss(self, part: Batch, share: Share) -> Tensor:
        """A micro-batch's share of the batch's loss, such that the mean over processes of their sums is that loss."""
        images, targets = part
        output = cast(Objective, self.objective)(images, targets)
        counted = len(images) if share.own else 0
        values = {**output.losses, "loss": output.loss}
        self._log("train", values, counted)
        if counted:
            for name, value in values.items():
                self._seen.setdefault(name, []).append(value.detach())
        return output.loss * (counted * self._processes / share.whole)

    @property
    def _processes(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Nothing: Lightning would do it between the forward passes and the backward pass of the last micro-batch."""

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

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002
    ) -> None:
        """Clip by the norm of all gradients, and keep that norm for the log.

        Raises:
            UserError: the loss or its gradient is not finite. The weights are as they were before the step.
        """
        parameters = list(self.trainer.precision_plugin.main_params(optimizer))
        if gradient_clip_val is None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        else:
            norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        self._grad_norm = in_one_piece(norm)
        if self.recipe.precision != "fp16":  # there, an infinite gradient is how the loss's scale is found
            self._seen["gradient norm"] = [self._grad_norm]
        decisive = [torch.zeros_like(self._grad_norm)]  # a process may have no image of a batch, and takes part
        decisive += [*self._seen.get("loss", []), *self._seen.get("gradient norm", [])]
        if not all_finite(decisive, self._processes):
            raise not_finite(self._seen, self._processes, epoch=self.current_epoch + 1, step=self.global_step + 1)

    def on_train_batch_end(self, *_: Any) -> None:
        """Log the norm of the gradients, before clipping; a scaled loss (fp16) may have skipped a step for it."""
        if self._processes > 1 and self.global_step == 1:  # e.g. heads that were matched on a process's own images
            for buffer in self.objective.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self._grad_norm is not None and (self.recipe.precision != "fp16" or self._grad_norm.isfinite()):
            self._log("train", {"grad_norm": self._grad_norm}, 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how batches are cut, which the memory may have decided."""
        checkpoint["accumulate"] = self.recipe.accumulate

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with decay groups; linear warm-up and half a cosine, as factors on each group's learning rate."""
        recipe = self.recipe
        groups = parameter_groups(
            self.objective,
            lr=recipe.peak_lr,
            decay=recipe.weight_decay,
            layers=recipe.layer_decay,
            head=recipe.head_lr,
        )
        fused = recipe.precision != "fp16"  # the fused one unscales gradients itself, after they were to be clipped
        optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(recipe.beta1, recipe.beta2), fused=fused)
        optimizer.register_step_pre_hook(decay_used_rows)
        factor = partial(warmup_cosine, steps=self.steps, warmup=round(recipe.warmup * self.steps), floor=recipe.min_lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _evaluate(self, stage: str, batch: Batch) -> None:
        self.evaluating = True
        images, targets = batch
        output = cast(Objective, self.objective)(images, targets)
        self._log(stage, {"loss": output.loss, **output.losses}, len(images))
        if output.logits is None:
            return
        self._log(stage, {"cross_entropy": F.cross_entropy(output.logits, targets)}, len(images))
        for name, score in self.scores.items():
            if name.startswith(stage):
                cast(Any, score).update(output.logits.softmax(dim=-1), targets)
                self.log(name, cast(Any, score), on_epoch=True, logger=False)

    def _log(self, stage: str, values: dict[str, Tensor], batch_size: int) -> None:
        self.log_dict(
            {f"{stage}/{name}": value.detach() for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=batch_size * self._processes,  # over processes, Lightning takes the mean and drops its fraction
            sync_dist=self._processes > 1,
            logger=False,
        )


class ShardedModule(ObjectiveModule):
    """The same, with the objective's weights in shares."""

    def configure_model(self) -> None:
        """Cut them, once."""
        strategy = self.trainer.strategy
        if isinstance(strategy, Sharded) and not isinstance(self.objective, FSDPModule):
            shard(self.objective, strategy.mesh)


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """Factor on the peak learning rate before step `step` of `steps`, counted from 0.

    Rises linearly to 1 over the `warmup` first steps, then falls along half a cosine to `floor` at the last.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(
    objective: nn.Module, *, lr: float, decay: float, layers: float, head: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices decay, biases, norms and tokens do not; blocks by layer-wise decay.

    `head` is a factor on the learning rate of the classification layer.
    """
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
    if head != 1:
        chosen = _with_head(chosen, vit, head)
    unused_rows = getattr(objective, "unused_rows", None)
    return _sparing(chosen, unused_rows() if unused_rows is not None else [])


def _with_head(groups: list[dict[str, Any]], vit: nn.Module, factor: float) -> list[dict[str, Any]]:
    """The groups, from which the classification layer's parameters are taken out into some with a rate of their own."""
    named = dict(unwrapped(vit).named_parameters())
    heads = {id(named[name]) for name in parameters_of(vit, "head")}
    cut: list[dict[str, Any]] = []
    for group in groups:
        own = [p for p in group["params"] if id(p) in heads]
        rest = [p for p in group["params"] if id(p) not in heads]
        cut += [{**group, "params": rest}] if rest else []
        cut += [{**group, "params": own, "lr": group["lr"] * factor}] if own else []
    return cut


def decay_used_rows(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Decoupled weight decay of parameters of which some rows are not trained, before a step: these stay."""
    for group in optimizer.param_groups:
        if "spared" not in group:
            continue
        for parameter in [p for p in group["params"] if p.grad is not None]:
            factor = torch.ones(len(parameter), 1, dtype=parameter.dtype, device=parameter.device)
            factor *= 1 - group["lr"] * group["used_decay"]
            for start, stop in group["spared"]:
                factor[start:stop] = 1
            with torch.no_grad():
                parameter.mul_(as_placed(factor, parameter))


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
