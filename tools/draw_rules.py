"""Draw the pictures of the rules' pages, docs/assets/rules/*.png, from a small real model.

    attention-transfer pretrain --out runs/teacher
    python tools/draw_rules.py runs/teacher [--out docs/assets/rules]

Every map, curve and number is of that teacher and of students trained here on 5 labelled digits a class, a few minutes
in all; nothing is drawn by hand but boxes and arrows. N is 17 tokens: the class token and 4×4 patches.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from rule_scene import Scene, arrow, box, fit, last_call, over, read_scene, show, thumbnail
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer import BSS, L2SP, Distill, FeatureKD, Guide, LogitKD, describe, student_from, student_like
from attention_transfer.objectives.mixing import row_of_last_block, transmix_weight
from attention_transfer.viewing.style import COLOURS, colour, save, style

TEACHER, PLAIN, FIRST, SECOND = COLOURS["teacher"], COLOURS["finetune"], "#cc79a7", "#d55e00"


def main() -> None:
    """Draw all, or those that are named."""
    pictures: dict[str, Callable[[Scene], Figure]] = {
        "copy": draw_copy,
        "distill": draw_distill,
        "guide": draw_guide,
        "logit-kd": draw_logit_kd,
        "feature-kd": draw_feature_kd,
        "l2sp": draw_l2sp,
        "bss": draw_bss,
        "transmix": draw_transmix,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="run folder of `attention-transfer pretrain` on the digits")
    parser.add_argument("--out", type=Path, default=Path("docs/assets/rules"))
    parser.add_argument("--only", choices=pictures, nargs="+", default=list(pictures))
    arguments = parser.parse_args()
    scene = read_scene(arguments.teacher)
    for name in arguments.only:
        torch.manual_seed(0)
        with style():
            print(save(pictures[name](scene), arguments.out / f"{name}.png"))


def draw_copy(scene: Scene) -> Figure:
    """The teacher's map in the place of the student's."""
    image = scene.of(3)
    student = student_like(scene.teacher, num_classes=10)
    known, own = last_call(scene.teacher, image), last_call(student, image)
    weights, values = known.maps()[0, 0], own.v[0, 0]
    copied = colour("copy")
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 44)
    axis.set_axis_off()
    for y, name in ((33, "teacher\n(frozen)"), (9, "student\n(trained)")):
        axis.text(0, y, name, fontsize=10, va="center")
        thumbnail(axis, (12, y - 5, 9, 10), image[0, 0], "gray", "image")
        arrow(axis, (22, y), (27, y))
    for y, side in ((33, "t"), (9, "s")):
        for dy, operand in ((6, "q"), (0, "k"), (-6, "v")):
            off = (side, operand) in (("s", "q"), ("s", "k"), ("t", "v"))
            box(axis, 33, y + dy, f"${operand}^{side}$", shade=TEACHER if side == "t" else copied, off=off)
    axis.text(33, 21, "grey: not computed", ha="center", va="center", fontsize=8, color="#808080")
    arrow(axis, (38.5, 39), (50, 35))
    arrow(axis, (38.5, 33), (50, 33))
    axis.text(44.5, 40.2, "softmax", ha="center", fontsize=9)
    thumbnail(axis, (51, 26, 13, 14), weights, "inferno", "")
    axis.text(66, 33, "the teacher's map: who looks where\n(last block, head 0; 17 × 17)", fontsize=8, va="center")
    arrow(axis, (57.5, 25), (57.5, 16), copied)
    axis.text(59, 20.5, "copied", fontsize=9, va="center", color=copied)
    arrow(axis, (38.5, 3), (50, 7.5), copied)
    box(axis, 57.5, 12.5, r"$P^t v^s$", shade=copied)
    thumbnail(axis, (51, 1, 13, 7.5), values, "coolwarm", "$v^s$")
    arrow(axis, (63, 12.5), (73, 12.5), copied)
    thumbnail(axis, (74, 5, 13, 14), weights @ values, "coolwarm", "")
    axis.text(88, 12, "what the\nstudent's\nhead reads", fontsize=8, va="center")
    return figure


def draw_distill(scene: Scene) -> Figure:
    """Maps of teacher and student, and the cross-entropy of each row."""
    image, steps = scene.of(3), 100
    before = student_like(scene.teacher, num_classes=10)
    after = fit(scene, copy.deepcopy(before), [Distill(weight=40.0)], steps=steps).student
    maps = [last_call(model, image).maps()[0, 0] for model in (scene.teacher, before, after)]
    known = maps[0]
    figure = Figure(figsize=(7.4, 2.4), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
    titles = ("teacher's map $P^t$\n", "student's map $P^s$\nat the start", f"student's map $P^s$\nafter {steps} steps")
    top = float(known.max())
    for axis, values, title in zip(axes, maps, titles, strict=False):
        show(axis, values, title, vmin=0, vmax=top, aspect="auto")
        axis.set_xlabel("keys j", fontsize=8)
    axes[0].set_ylabel("queries i", fontsize=8)
    rows = np.arange(len(known))
    entropy, first, last = (-(known * other.log()).sum(dim=-1).numpy() for other in (known, maps[1], maps[2]))
    bars = axes[3]
    bars.barh(rows, first - entropy, left=entropy, height=0.8, color="#c8c8c8", label="start")
    bars.barh(rows, last - entropy, left=entropy, height=0.8, color=colour("distill"), label=f"{steps} steps")
    bars.step(np.append(entropy, entropy[-1]), np.arange(-0.5, len(rows)), color=TEACHER, lw=1.2, label="least")
    bars.set_ylim(len(rows) - 0.5, -0.5)
    bars.set_yticks([])
    bars.set_xlabel("nats", fontsize=8)
    bars.tick_params(labelsize=8)
    bars.set_xlim(left=float(entropy.min()) - 0.25)
    bars.set_title("cross-entropy\nof each row", fontsize=9)
    bars.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def draw_guide(scene: Scene) -> Figure:
    """The class token's row after fine-tuning, with and without the guide."""
    image = scene.of(3)
    source = student_from(scene.teacher, num_classes=10)
    plain = fit(scene, copy.deepcopy(source), []).student
    guided = fit(scene, copy.deepcopy(source), [Guide(weight=0.4)]).student
    calls = [last_call(model, image) for model in (source, plain, guided)]
    rows = [call.class_logits()[0] for call in calls]
    looks = [call.maps()[0, :, 0, 1:].mean(dim=0) for call in calls]
    gaps = [(row - rows[0]).square().mean(dim=0) for row in rows[1:]]
    figure = Figure(figsize=(7.4, 2.1), layout="constrained")
    axes = figure.subplots(1, 6)
    show(axes[0], image[0, 0], "image", cmap="gray")
    titles = ("source", "fine-tuned", "guided")
    top = max(float(look.max()) for look in looks)
    for axis, look, title in zip(axes[1:4], looks, titles, strict=True):
        over(axis, image, look, title, top=top)
    top = max(float(gap[1:].max()) for gap in gaps)
    for axis, gap, title in zip(axes[4:], gaps, titles[1:], strict=True):
        show(axis, gap[1:].reshape(4, 4), f"{title}:\ndifference²", cmap="viridis", vmin=0, vmax=top)
        axis.set_xlabel(f"mean {gap.mean():.2f}", fontsize=8)
    axes[2].set_xlabel("where the class token looks", fontsize=8)
    return figure


def draw_logit_kd(scene: Scene) -> Figure:
    """Class probabilities of teacher and student at two temperatures."""
    teacher = fit(scene, student_from(scene.teacher, num_classes=10), []).student
    student = fit(scene, student_like(scene.teacher, num_classes=10), [LogitKD()], teacher=teacher).student
    with torch.no_grad():
        sure = teacher(scene.shown).softmax(dim=-1).amax(dim=-1)
        image = scene.shown[int((sure - 0.7).abs().argmin())][None]  # an image of which the teacher is not quite sure
        logits = [model(image)[0] for model in (teacher, student)]
    figure = Figure(figsize=(7.4, 2.5), layout="constrained")
    for axis, temperature in zip(figure.subplots(1, 2), (1.0, 4.0), strict=True):
        known, own = (torch.softmax(row / temperature, dim=-1) for row in logits)
        loss = temperature**2 * float((known * (known / own).log()).sum())
        axis.bar(np.arange(10) - 0.2, known, 0.4, color=TEACHER, label="teacher, fine-tuned")
        axis.bar(np.arange(10) + 0.2, own, 0.4, color=colour("logit-kd"), label="student")
        axis.set_xticks(range(10))
        axis.set_xlabel("class")
        axis.set_title(f"T = {temperature:g}:  T² · KL = {loss:.2f}", fontsize=9)
    figure.axes[0].set_ylabel("probability")
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


def draw_feature_kd(scene: Scene) -> Figure:
    """A block's output on both sides."""
    transfer = fit(scene, student_like(scene.teacher, num_classes=10), [FeatureKD(weight=4.0)])
    image, last = scene.of(3), describe(scene.teacher).depth - 1
    seen = [blocks_output(model, last, image) for model in (transfer.student, scene.teacher)]
    assert transfer.networks is not None
    projection = transfer.networks.modules_of["featurekd"][str(last)]  # type: ignore[index]
    with torch.no_grad():
        projected, known = projection(seen[0]), F.layer_norm(seen[1], seen[1].shape[-1:])
    gap = (projected - known).square()
    figure = Figure(figsize=(7.4, 1.8), layout="constrained")
    axes = figure.subplots(1, 4)
    matrices = {"student's $x^s$": seen[0], "projected: $W x^s$": projected, "layer_norm($x^t$)": known}
    for axis, (title, values) in zip(axes, matrices.items(), strict=False):
        show(axis, values, title, cmap="coolwarm", vmin=-3, vmax=3, aspect="auto")
        axis.set_xlabel("width", fontsize=8)
    show(axes[3], gap, "squared difference", cmap="viridis", aspect="auto", vmin=0, vmax=float(gap.quantile(0.99)))
    axes[3].set_xlabel(f"mean {gap.mean():.2f}", fontsize=8)
    axes[0].set_ylabel("tokens", fontsize=8)
    return figure


@torch.no_grad()
def blocks_output(model: Any, layer: int, image: Tensor) -> Tensor:
    """What a block puts out for one image, (N, width)."""
    output: Tensor = model.forward_intermediates(
        image, indices=[layer], norm=False, return_prefix_tokens=True, intermediates_only=True, output_fmt="NLC"
    )[0][::-1]
    return torch.cat([part[0] for part in output])


def draw_l2sp(scene: Scene) -> Figure:
    """Two ways of fine-tuning, in the plane of the start and their ends."""
    start = student_from(scene.teacher, num_classes=10)
    weights = {"fine-tuned": 0.0, "L2-SP, weight 0.01": 0.01, "L2-SP, weight 0.1": 0.1}
    ways = {name: way_of(scene, start, weight) for name, weight in weights.items()}
    origin, shades = backbone(start), (PLAIN, FIRST, SECOND)
    ends = torch.stack([way[-1] - origin for way in ways.values()][::2])
    basis, turns = torch.linalg.qr(ends.T)
    basis = basis * turns.diagonal().sign()  # both ends to the right and upwards
    figure = Figure(figsize=(7.4, 2.9), layout="constrained")
    plane, distances = figure.subplots(1, 2, width_ratios=(1.4, 1))
    for radius in range(1, int(ends.norm(dim=1).max()) + 3):
        plane.add_artist(Circle((0, 0), radius, fill=False, ec="#d8d8d8", lw=0.8, zorder=0))  # which changes no limits
    for (name, way), shade in zip(ways.items(), shades, strict=True):
        path = (way - origin) @ basis
        plane.plot(path[:, 0], path[:, 1], color=shade, lw=1.6)
        plane.plot(*path[-1], "o", color=shade, markersize=6)
        distances.plot((way - origin).norm(dim=1), color=shade, label=name)
    plane.margins(x=0.12, y=1.5)
    plane.plot(0, 0, "*", color=TEACHER, markersize=11)
    plane.annotate(r"$\theta_0$", (0, 0), (-12, -12), textcoords="offset points")
    plane.set_aspect("equal")
    plane.grid(visible=False)
    plane.set_title("the weights on their way from the start", fontsize=9)
    plane.set_xlabel(r"a plane through $\theta_0$ and two of the ends", fontsize=8)
    distances.set_xlabel("step")
    distances.set_ylabel("‖θ − θ₀‖")
    distances.legend(fontsize=8, frameon=False)
    return figure


def way_of(scene: Scene, start: nn.Module, weight: float) -> Tensor:
    """The backbone's weights at the start and after each step, (steps + 1, weights)."""
    way = [backbone(start)]

    def note(student: nn.Module) -> None:
        way.append(backbone(student))

    fit(scene, copy.deepcopy(start), [L2SP(weight=weight)], each=note)
    return torch.stack(way)


def backbone(model: nn.Module) -> Tensor:
    """All weights but the head's, one after the other."""
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if not name.startswith("head")])


def draw_bss(scene: Scene) -> Figure:
    """Singular values of a batch's features."""
    start = student_from(scene.teacher, num_classes=10)
    runs: dict[str, Any] = {
        "at the start": start,
        "fine-tuned": fit(scene, copy.deepcopy(start), []).student,
        "BSS, weight 0.001": fit(scene, copy.deepcopy(start), [BSS()]).student,
        "BSS, weight 1, k 8": fit(scene, copy.deepcopy(start), [BSS(weight=1.0, k=8)]).student,
    }
    figure = Figure(figsize=(7.4, 2.8), layout="constrained")
    axis = figure.subplots()
    for (name, model), shade in zip(runs.items(), (COLOURS["scratch"], PLAIN, FIRST, SECOND), strict=True):
        with torch.no_grad():
            features = model.forward_head(model.forward_features(scene.images), pre_logits=True)
        values = torch.linalg.svdvals(features)
        axis.plot(np.arange(1, len(values) + 1), values, marker="o", markersize=3, color=shade, label=name)
    axis.set_yscale("log")
    axis.set_xlabel(f"singular value of a batch's features ({len(scene.images)} × {features.shape[1]}), falling")
    axis.set_ylabel("σ")
    axis.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def draw_transmix(scene: Scene) -> Figure:
    """Two images, a box, and what area and attention make of it."""
    model = fit(scene, student_from(scene.teacher, num_classes=10), []).student
    first, second, spec = scene.of(4), scene.of(0), describe(scene.teacher)
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[2:8, 4:8] = False
    mixed = torch.where(mask, first, second)
    call = last_call(model, mixed)
    rows = row_of_last_block(call)
    weight = float(transmix_weight(rows, mask, tokens=spec.tokens, grid=spec.grid))
    area = float(mask.float().mean())
    figure = Figure(figsize=(7.4, 1.9), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.7))
    for axis, image, title in zip(axes, (first, second, mixed), ("first: a 4", "second: a 0", "mixed"), strict=False):
        show(axis, image[0, 0], title, cmap="gray")
    looks = rows[0, :, 1:].mean(dim=0)
    over(axes[3], mixed, looks, "attention of the\nclass token", top=float(looks.max()))
    for axis in axes[1:4]:
        axis.add_patch(Rectangle((3.5, 1.5), 4, 6, fill=False, ec="#56b4e9", lw=2.0))
    bars = axes[4]
    shares = {"area": area, "attention": 2 * weight - area, "TransMix: λ": weight}
    bars.barh(list(shares), list(shares.values()), color=("#c8c8c8", SECOND, TEACHER), height=0.6)
    for place, share in enumerate(shares.values()):
        bars.text(share + 0.02, place, f"{share:.2f}", va="center", fontsize=8)
    bars.set_xlim(0, 1)
    bars.invert_yaxis()
    bars.grid(visible=False)
    bars.tick_params(labelsize=8)
    bars.set_title("weight of the label 4", fontsize=9)
    return figure


if __name__ == "__main__":
    main()
