"""Compare this library with the published code of Attention Transfer, on the same weights and images.

    python benchmarks/peers/attention_transfer_release.py PATH [--out FILE]

PATH is a local clone of github.com/alexlioralexli/attention-transfer (CC BY-NC 4.0). It is imported from there and
never needed by anything else. For each of its modes, with and without shared drop path, both sides get one state dict,
one batch and one set of drop-path masks, in training mode; logits, distillation loss and all gradients of the student
are compared in float32. Relative difference is |ours - theirs| / |theirs| in the Euclidean norm; the gradient's is the
largest over the student's parameters.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer import AttentionTransfer, Copy, Distill, Rule
from attention_transfer.vit import set_drop_path
from attention_transfer.vit.weights import load_weights

DEPTH, WIDTH, HEADS, CLASSES, BATCH, WEIGHT = 12, 192, 3, 10, 4, 3.0
END_LAYER = -3  # the release binds all but the last three blocks
BOUND = list(range(DEPTH + END_LAYER))
SUMMED = WEIGHT * len(BOUND)  # the release sums over blocks, and the rules take their mean
RULES: dict[str, Rule] = {
    "copy": Copy(layers=BOUND),
    "copy_q": Copy(parts="q", layers=BOUND),
    "copy_k": Copy(parts="k", layers=BOUND),
    "copy_v": Copy(parts="v", layers=BOUND),
    "distill": Distill(weight=SUMMED, layers=BOUND),
    "distill_q": Distill(weight=SUMMED, target="q", layers=BOUND),
    "distill_k": Distill(weight=SUMMED, target="k", layers=BOUND),
    "distill_v": Distill(weight=SUMMED, target="v", layers=BOUND),
}
MARK = 1e-5


def main() -> None:
    """Compare every mode, print a table, and leave with 1 where a difference is above the mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="local clone of the release")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    if not (arguments.path / "models_dual_vit.py").is_file():
        parser.error(f"{arguments.path} is no clone of the release (no models_dual_vit.py)")
    sys.path.insert(0, str(arguments.path))
    rows = [compare(mode, drop_path) for drop_path in (0.0, 0.2) for mode in RULES]
    print("| mode | drop path | logits | distillation loss | gradients |\n|---|---|---|---|---|")
    for row in rows:
        loss = "–" if row["loss"] is None else f"{row['loss']:.1e}"
        print(f"| {row['mode']} | {row['drop_path']} | {row['logits']:.1e} | {loss} | {row['gradients']:.1e} |")
    if arguments.out:
        versions = {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
        report = {"date": date.today().isoformat(), "device": "cpu", "dtype": "float32", "versions": versions}
        arguments.out.write_text(json.dumps({**report, "rows": rows}, indent=2) + "\n")
    worst = max(value for row in rows for value in (row["logits"], row["loss"] or 0.0, row["gradients"]))
    print(f"largest relative difference: {worst:.1e} (mark {MARK:.0e})")
    sys.exit(worst > MARK)


def compare(mode: str, drop_path: float) -> dict[str, Any]:
    """Relative differences of one mode."""
    theirs = release(mode, drop_path)
    ours = library(theirs, RULES[mode], drop_path)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 224, 224, generator=generator)
    targets = torch.randint(CLASSES, (BATCH,), generator=generator)
    if (shared := ours._binding.drop_path) is not None:
        masks = shared.draw(BATCH, images.device)
        shared.draw = lambda *_: masks  # type: ignore[method-assign]
        theirs.get_drop_path_mask = lambda *_: [list(masks[2 * i : 2 * i + 2]) for i in range(DEPTH)]

    output = ours(images)
    output.total(F.cross_entropy(output.logits, targets)).backward()
    result = theirs(images)
    logits, loss = result if isinstance(result, tuple) else (result, None)
    (F.cross_entropy(logits, targets) + (0.0 if loss is None else WEIGHT * loss)).backward()

    gradients = dict(theirs.student.named_parameters())
    pairs = [(p.grad, gradients[name].grad) for name, p in ours.student.named_parameters()]
    assert len(pairs) == len(gradients)
    return {
        "mode": mode,
        "drop_path": drop_path,
        "logits": difference(output.logits, logits),
        "loss": None if loss is None else difference(len(BOUND) * output.losses["distill"], loss),
        "gradients": max(difference(a, b) for a, b in pairs),
    }


def release(mode: str, drop_path: float) -> Any:
    """The published two-stream model, with weights that are large enough to give maps a shape."""
    from models_dual_vit import DualVisionTransformer  # type: ignore[import-not-found]

    torch.manual_seed(0)
    options = {
        "patch_size": 16,
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "mlp_ratio": 4,
        "qkv_bias": True,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
        "num_classes": CLASSES,
        "global_pool": True,
    }
    model = DualVisionTransformer(mode, drop_path, options, options, END_LAYER)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.train()


def library(theirs: nn.Module, rule: Rule, drop_path: float) -> AttentionTransfer:
    """The same pair here, loaded from a file in the release's layout."""
    networks = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pth"
        torch.save({"model": theirs.state_dict(), "epoch": 0, "args": argparse.Namespace()}, file)
        for name in ("teacher", "student"):
            networks[name] = timm.create_model(
                "vit_tiny_patch16_224", num_classes=CLASSES, global_pool="avg", embed_dim=WIDTH, num_heads=HEADS
            )
            load_weights(networks[name], file, name, network=name)
    set_drop_path(networks["student"], drop_path)
    return AttentionTransfer(networks["teacher"], networks["student"], [rule], share_drop_path=drop_path > 0).train()


def difference(ours: Tensor | None, theirs: Tensor | None) -> float:
    """Relative difference in the Euclidean norm; a missing gradient is zero."""
    if ours is None or theirs is None:
        rest = [x.norm().item() for x in (ours, theirs) if x is not None]
        return float(max(rest, default=0.0))
    norm, gap = float(theirs.norm()), float((ours - theirs).norm())
    return gap / norm if norm > 0 else gap


if __name__ == "__main__":
    main()
