"""AdamW's parameter groups, the schedule of its learning rate, and the average of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from attention_transfer.config.recipe import ResolvedRecipe
from attention_transfer.engine.distributed import as_placed
from attention_transfer.objectives import Objective
from attention_transfer.vit import anatomy, parameters_of, unwrapped


def adamw(objective: Objective, recipe: ResolvedRecipe) -> torch.optim.AdamW:
    """AdamW with weight decay by group; `lr` of each group is the peak until `set_learning_rate` is called."""
    groups = parameter_groups(
        objective, lr=recipe.peak_lr, decay=recipe.weight_decay, layers=recipe.layer_decay, head=recipe.head_lr
    )
    for group in groups:
        group["peak_lr"] = group["lr"]
    fused = recipe.precision != "fp16"  # the fused one unscales gradients itself, after they were to be clipped
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(recipe.beta1, recipe.beta2), fused=fused)
    optimizer.register_step_pre_hook(decay_trained_rows)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """Factor on the peak learning rate before step `step` of `steps`, counted from 0.

    Rises linearly to 1 over the `warmup` first steps, then falls along half a cosine to `floor` at the last.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(
    objective: Objective, *, lr: float, decay: float, layers: float, head: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices decay, biases, norms and tokens do not; blocks by layer-wise decay.

    `head` is a factor on the learning rate of the classification layer.
    """
    vit: Any = objective.vit
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
    return _with_untrained_rows(chosen, objective.untrained_rows())


def head_parameters(vit: nn.Module) -> set[nn.Parameter]:
    """The parameters of a network's classification layer."""
    named = dict(unwrapped(vit).named_parameters())
    return {named[name] for name in parameters_of(vit, "head")}


def _with_head(groups: list[dict[str, Any]], vit: nn.Module, factor: float) -> list[dict[str, Any]]:
    """The groups, in which the classification layer's parameters have groups, and a rate, of their own."""
    heads = head_parameters(vit)
    split: list[dict[str, Any]] = []
    for group in groups:
        own = [p for p in group["params"] if p in heads]
        rest = [p for p in group["params"] if p not in heads]
        split += [{**group, "params": rest}] if rest else []
        split += [{**group, "params": own, "lr": group["lr"] * factor}] if own else []
    return split


def _with_untrained_rows(
    groups: list[dict[str, Any]], untrained: list[tuple[nn.Parameter, slice]]
) -> list[dict[str, Any]]:
    """The groups, in which parameters with untrained rows have groups of their own, decayed by `decay_trained_rows`."""
    rows: dict[nn.Parameter, list[list[int]]] = {}
    for parameter, place in untrained:
        start, stop, _ = place.indices(len(parameter))
        rows.setdefault(parameter, []).append([start, stop])
    apart = []
    for group in groups:
        partly = [p for p in group["params"] if p in rows and group["weight_decay"] > 0]
        group["params"] = [p for p in group["params"] if p not in set(partly)]
        for parameter in partly:
            own = {"params": [parameter], "untrained": rows[parameter], "row_decay": group["weight_decay"]}
            apart.append({**group, **own, "weight_decay": 0.0})
    return [group for group in groups if group["params"]] + apart


@torch.no_grad()
def decay_trained_rows(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Before a step, apply decoupled weight decay to parameters with untrained rows; those rows keep their values."""
    for group in optimizer.param_groups:
        for parameter in [p for p in group["params"] if "untrained" in group and p.grad is not None]:
            factor = torch.ones(len(parameter), 1, dtype=parameter.dtype, device=parameter.device)
            factor *= 1 - group["lr"] * group["row_decay"]
            for start, stop in group["untrained"]:
                factor[start:stop] = 1
            parameter.mul_(as_placed(factor, parameter))


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


class AveragedWeights:
    """Exponential moving average of the trained weights, warmed up: its decay after n updates is at most (1+n)/(10+n).

    Without warm-up a short training would be judged by its initial weights.

    Args:
        objective: whose parameters are averaged, where they are.
        decay: the largest decay; `None` keeps no average.
    """

    def __init__(self, objective: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.updates = 0
        self._current: list[Tensor] = [p for p in objective.parameters() if decay is not None and p.requires_grad]
        self._average = [p.detach().clone() for p in self._current]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if self.decay is None:
            return
        if self.updates == 0:
            self.restore(0)
        else:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            get_ema_multi_avg_fn(decay)(self._average, self._current, self.updates)
        self.updates += 1

    @torch.no_grad()
    def restore(self, updates: int) -> None:
        """Take the weights that the objective has as the average after so many updates."""
        for average, current in zip(self._average, self._current, strict=True):
            average.copy_(current)
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the objective have the average inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, current in zip(self._average, self._current, strict=True):
            kept = average.clone()
            average.copy_(current)
            current.copy_(kept)
