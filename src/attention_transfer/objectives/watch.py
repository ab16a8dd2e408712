"""How far a student attends as its teacher does, and where both look, at every validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from math import log as ln
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from attention_transfer.attention import attention_js
from attention_transfer.data import Placement
from attention_transfer.errors import UserError
from attention_transfer.objectives.base import Images
from attention_transfer.viewing import SheetRow, attention_sheet, save_sheet
from attention_transfer.vit import (
    AttentionCall,
    AttentionProbe,
    Correspondence,
    InputFor,
    ViTSpec,
    capture,
    check_transfer,
    describe,
    patch_attention,
)

if TYPE_CHECKING:
    from attention_transfer.objectives.supervised import Supervised

log = logging.getLogger("attention_transfer")

_LOOKED_AT = 8  # validation images; the cost is that of a forward pass of these
_DRAWN = 3
_MOST_COLUMNS, _COLUMNS_OF_MANY = 12, 8  # layers in the picture
_DIGITS = 5  # of an agreement; those after are rounding

_Patches = NDArray[np.float32]


class WatchAttention:
    """Measures how far a student attends as its teacher does, and draws where both look.

    The agreement of a layer is 1 - JS(P_student, P_teacher) / ln 2 with the Jensen–Shannon divergence of the attention
    maps, mean over images, heads and query rows: 1 where the maps are equal, 0 where they share no key. The student is
    run with its rules, so that copied attention counts as its own. Nothing is drawn at random, and nothing stays on the
    models. The arguments are those of [`Objective.watch`][attention_transfer.objectives.Objective.watch]; a few
    images, evenly spaced, are looked at.
    """

    def __init__(
        self, objective: Supervised, images: Images, picture: Path | None, *, name: str, batch_size: int
    ) -> None:
        self._objective = objective
        self._images = images
        self._picture = picture
        self._name = name
        self._batch_size = min(batch_size, _LOOKED_AT)
        self._pixels: Tensor | None = None
        self._pair: _Pair | None = None

    @torch.no_grad()
    def __call__(self, prepare: nn.Module) -> dict[str, float]:
        """The agreement of each layer as `agreement/layer_1` and so on; nothing without a teacher."""
        if self._pixels is None or self._pair is None:
            self._pixels, self._pair = _some(self._images), _Pair.of(self._objective, self._name)
        device = next(self._objective.parameters()).device
        pair, parts = self._pair, self._pixels.split(self._batch_size)
        looks = [pair.look(self._objective, prepare(pixels.to(device))) for pixels in parts]
        if self._picture is not None:
            _draw(self._picture, self._pixels, looks, pair)
        means = {layer: torch.cat([look.divergences[layer] for look in looks]).mean() for layer in looks[0].divergences}
        return {f"agreement/layer_{layer + 1}": _agreement(float(mean)) for layer, mean in means.items()}


@dataclass(frozen=True)
class _Look:
    """What was seen of some images."""

    divergences: dict[int, Tensor]  # by the student's layer, a value an image, (B,), in nats
    student: dict[int, Tensor]  # by layer, what the patches get, (B, rows, columns)
    teacher: dict[int, Tensor]  # the same of the teacher's layer that belongs to a layer of the student


@dataclass(frozen=True)
class _Pair:
    """A student, and which block of the teacher belongs to each of its blocks."""

    spec: ViTSpec
    teacher: nn.Module | None = None
    teacher_spec: ViTSpec | None = None
    layers: tuple[tuple[int, int], ...] = ()  # the student's, the teacher's

    @classmethod
    def of(cls, objective: Supervised, name: str) -> _Pair:
        """Pair them as the rules do; the reason is logged where they can't be."""
        spec, teacher = describe(objective.vit), objective.teacher
        if teacher is None:
            return cls(spec)
        report = check_transfer(teacher, objective.vit, pairing=objective.pairing)
        problems, layers = list(report.problems), []
        for layer in range(0 if problems else spec.depth):
            try:
                layers.append((layer, _partner(objective, layer, report.teacher, spec)))
            except UserError as error:
                problems.append(str(error))
        if problems:
            which = f"in {spec.depth - len(layers)} of {spec.depth} layers, " if layers else ""
            log.debug("%s: no agreement of attention is measured, %sas %s", name, which, problems[0])
        return cls(spec, teacher, report.teacher, tuple(layers)) if layers else cls(spec)

    @property
    def columns(self) -> list[int]:
        """The layers that are drawn."""
        depth = self.spec.depth
        if depth <= _MOST_COLUMNS:
            return list(range(depth))
        return [round(i) for i in np.linspace(0, depth - 1, _COLUMNS_OF_MANY).tolist()]

    def look(self, objective: Supervised, images: Tensor) -> _Look:
        """Run both on images (B, channels, height, width), normalised for the student."""
        with capture(objective.vit) as calls:
            objective.run_student(images)
        ours = {call.layer: call for call in calls}
        student = {layer: patch_attention(ours[layer], self.spec) for layer in self.columns}
        if self.teacher is None or self.teacher_spec is None:
            return _Look({}, student, {})
        probe = AttentionProbe(self.teacher, [there for _, there in self.layers])
        try:
            theirs = probe(InputFor(self.teacher_spec, self.spec).to(images.device, images.dtype)(images))
        finally:
            probe.release()
        correspondence = Correspondence(objective.pairing, self.teacher_spec, self.spec)
        divergences, teacher = {}, {}
        for layer, there in self.layers:
            seen = correspondence.seen(theirs[there], reading="maps", heads=objective.matched_heads(layer))
            divergences[layer] = _divergence(ours[layer], seen)
            if layer in student:
                teacher[layer] = patch_attention(theirs[there], self.teacher_spec)
        return _Look(divergences, student, teacher)


def _partner(objective: Supervised, layer: int, teacher: ViTSpec, student: ViTSpec) -> int:
    if objective.pairing.heads == "match":
        heads = objective.matched_heads(layer)
        if heads is None or bool((heads < 0).any()):
            raise UserError(f"no rule has matched the heads of block {layer}")
    return objective.pairing.teacher_layer(layer, teacher, student)


def _divergence(student: AttentionCall, teacher: AttentionCall) -> Tensor:
    """Jensen–Shannon divergence in nats, mean over heads and rows, (B,)."""
    rows_BHN = attention_js(
        student.q,
        student.k,
        teacher.q,
        teacher.k,
        scale_s=student.scale,
        scale_t=teacher.scale,
        mask_s=student.mask,
        mask_t=teacher.mask,
    )
    return rows_BHN.mean(dim=(1, 2))


def _agreement(divergence: float) -> float:
    """From nats to [0, 1]; rounding can carry a divergence out of its bounds. NaN stays."""
    return float(np.clip(round(1 - divergence / ln(2), _DIGITS), 0.0, 1.0))


def _some(images: Images) -> Tensor:
    """Pixels of a few images, evenly spaced, as folders are sorted by class; (B, channels, height, width)."""
    total = len(cast(Sized, images))
    places = np.linspace(0, total - 1, min(_LOOKED_AT, total)).round().astype(int).tolist()
    return torch.stack([images[place][0] for place in places])


def _draw(path: Path, pixels: Tensor, looks: Sequence[_Look], pair: _Pair) -> None:
    """The first, the middle and the last image, each with the student's attention and the teacher's."""
    columns = pair.columns
    student, teacher = _arrays([look.student for look in looks]), _arrays([look.teacher for look in looks])
    rows = []
    for place in sorted({round(i) for i in np.linspace(0, len(pixels) - 1, _DRAWN).tolist()}):
        image = Image.fromarray(_image(pixels[place]))
        for label, maps in {"student": student, "teacher": teacher}.items():
            if maps:
                shown = [maps[layer][place] if layer in maps else None for layer in columns]
                rows.append(SheetRow(label, image, _whole(image, maps[columns[-1]][place]), shown))
    save_sheet(attention_sheet(rows, [f"layer {layer + 1}" for layer in columns]), path)


def _whole(image: Image.Image, patches: _Patches) -> Placement:
    """The patches of a network that saw an image whole, as it was cropped before."""
    rows, columns = patches.shape
    return Placement(image.size, (rows, columns), (0, 0, image.width, image.height))


def _arrays(looks: Sequence[dict[int, Tensor]]) -> dict[int, _Patches]:
    return {layer: torch.cat([look[layer] for look in looks]).float().cpu().numpy() for layer in looks[0]}


def _image(pixels: Tensor) -> NDArray[np.uint8]:
    """(channels, height, width) as an image; what is not made of pixels is scaled from its least to its most."""
    if pixels.dtype != torch.uint8:
        low, high = pixels.aminmax()
        pixels = ((pixels - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(1, 2, 0).squeeze(-1).cpu().numpy()
    return np.ascontiguousarray(array)
