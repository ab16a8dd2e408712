"""Compare TransMix's label weights, BSS and L2-SP with their public implementations, on the same tensors.

    python benchmarks/peers/transmix_and_regularisers.py --transmix PATH --tllib PATH [--out FILE]

The paths are local clones of github.com/Beckschen/TransMix (Apache-2.0) and of
github.com/thuml/Transfer-Learning-Library (MIT). They are imported from there and never needed by anything else.
Values, and for BSS and L2-SP all gradients, are compared in float64 and float32. Relative difference is
|ours - theirs| / |theirs| in the Euclidean norm; a gradient's is the largest over the student's parameters.

How the definitions relate:

- TransMix: theirs is the weight of the image inside the box, ours that of the image around it, 1 - theirs. Where no
  patch gets any attention, theirs is NaN and ours the share of the area.
- BSS: the same sum. Where k is above the number of singular values, ours is the sum of them all; theirs counts some of
  them twice.
- L2-SP: theirs are two terms, of backbone and head, each with its ½ and its weight; ours is one, with
  weight = trade_off_backbone and head = trade_off_head / trade_off_backbone. Theirs counts frozen weights, which have
  no effect on gradients; ours leaves them out. Both take every backbone parameter, biases and norms included.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn

from attention_transfer import BSS, L2SP, AttentionTransfer, Rule, capture, describe
from attention_transfer.config.mixing import Mixing
from attention_transfer.objectives.mixing import mix, row_of_last_block, transmix_weight

BATCH, CLASSES, BOXES = 8, 10, 50
TRADE_OFF_BACKBONE, TRADE_OFF_HEAD = 0.01, 0.03
# In float32 the least singular value is known to about 1e-7 of the greatest, which is thousands of times as large.
MARKS = {torch.float64: 1e-10, torch.float32: 1e-3}
Row = dict[str, Any]


def main() -> None:
    """Compare each term, print a table, and leave with 1 where a difference is above the mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transmix", type=Path, required=True, help="local clone of TransMix")
    parser.add_argument("--tllib", type=Path, required=True, help="local clone of Transfer-Learning-Library")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    transmix = load(arguments.transmix / "transmix.py", parser)
    regularization = arguments.tllib / "tllib" / "regularization"
    bss, delta = load(regularization / "bss.py", parser), load(regularization / "delta.py", parser)
    rows = [
        row
        for dtype in MARKS
        for row in (*compare_transmix(transmix, dtype), *compare_bss(bss, dtype), compare_l2sp(delta, dtype))
    ]
    print("| term | dtype | value | gradients |\n|---|---|---|---|")
    for row in rows:
        gradients = "–" if row["gradients"] is None else f"{row['gradients']:.1e}"
        print(f"| {row['term']} | {row['dtype']} | {row['value']:.1e} | {gradients} |")
    if arguments.out:
        versions = {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
        report = {"date": date.today().isoformat(), "device": "cpu", "versions": versions, "rows": rows}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    good = all(row["value"] <= row["mark"] and (row["gradients"] or 0.0) <= row["mark"] for row in rows)  # NaN is not
    sys.exit(not good)


def compare_transmix(theirs: Any, dtype: torch.dtype) -> Iterator[Row]:
    """The labels' weights, for random boxes over random and over a network's attention; the largest difference."""
    mixup = theirs.Mixup_transmix(num_classes=2)
    one_hot = torch.eye(2, dtype=dtype)
    for name, size in (("vit_tiny_patch16_224", 224), ("vit_tiny_patch16_224", 96), ("vit_small_patch32_224", 224)):
        student = vit(name, dtype, img_size=size)
        spec, images = describe(student), torch.randn(BATCH, 3, size, size, dtype=dtype)
        worst = 0.0
        for _ in range(BOXES):
            mixed = mix(images, torch.arange(BATCH), Mixing(cutmix=1.0))
            with capture(student, layers=[-1]) as calls:
                student(mixed.images)
            rows_BHN, mask = row_of_last_block(calls[0]), mixed.targets.mask
            assert mask is not None
            ours = transmix_weight(rows_BHN, mask, tokens=spec.tokens, grid=spec.grid)
            labels = (None, one_hot[:1].expand(BATCH, -1), one_hot[1:].expand(BATCH, -1), box_of(mask))
            attention = calls[0].maps()[:, :, 0, 1:].mean(dim=1)
            with patch.object(Tensor, "cuda", lambda self: self):  # their mask is made on the GPU
                target = mixup.transmix_label(labels, attention.to(dtype), images.shape)
            worst = max(worst, difference(ours.to(dtype), target[:, 0]))
        yield row(f"TransMix λ, {spec.grid[0]}×{spec.grid[1]} patches, {BOXES} boxes", dtype, worst, None)


def compare_bss(theirs: Any, dtype: torch.dtype) -> Iterator[Row]:
    """Batches smaller and larger than the width, one singular value and several."""
    for batch, k in ((BATCH, 1), (BATCH, 3), (64, 1), (64, 5)):
        ours = vit("vit_tiny_patch16_224", dtype, img_size=32, embed_dim=48)
        module, network = theirs.BatchSpectralShrinkage(k=k), copy.deepcopy(ours)
        images = torch.randn(batch, 3, 32, 32, dtype=dtype)
        features = network.forward_head(network.forward_features(images), pre_logits=True)
        yield compare(f"BSS, batch {batch} × width 48, k {k}", dtype, ours, BSS(k=k), images, network, module(features))


def compare_l2sp(theirs: Any, dtype: torch.dtype) -> Row:
    """A student that has moved away from its start."""
    ours = vit("vit_tiny_patch16_224", dtype, img_size=32)
    move = partial(moved, seed=1)
    network = move(copy.deepcopy(ours))
    head, network.head = network.head, nn.Identity()  # they take backbone and head apart
    backbone_term, head_term = theirs.SPRegularization(copy.deepcopy(ours), network), theirs.L2Regularization(head)
    loss = TRADE_OFF_BACKBONE * backbone_term() + TRADE_OFF_HEAD * head_term()
    network.head = head
    rule = L2SP(weight=TRADE_OFF_BACKBONE, head=TRADE_OFF_HEAD / TRADE_OFF_BACKBONE)
    images = torch.randn(2, 3, 32, 32, dtype=dtype)
    return compare("L2-SP", dtype, ours, rule, images, network, loss / rule.weight, move)


def compare(
    term: str,
    dtype: torch.dtype,
    ours: nn.Module,
    rule: Rule,
    images: Tensor,
    theirs: nn.Module,
    loss: Tensor,
    move: Callable[[nn.Module], object] = lambda _: None,
) -> Row:
    """Their loss on their network against the rule's on ours, which `move` trains after the rule was bound."""
    transfer = AttentionTransfer(None, ours, [rule])
    move(ours)
    own = transfer(images).losses[rule.name]
    own.backward()
    loss.backward()
    gradients = dict(theirs.named_parameters())
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    norms = [difference(p.grad, gradients[name].grad) for name, p in ours.named_parameters()]
    return row(term, dtype, difference(own, loss), max(norms))


def vit(name: str, dtype: torch.dtype, **settings: Any) -> Any:
    """A small random network, with weights that are large enough to give maps a shape."""
    torch.manual_seed(0)
    settings = {"embed_dim": 192, "num_heads": 3, "depth": 3, "num_classes": CLASSES, **settings}
    return moved(timm.create_model(name, **settings), seed=0).to(dtype)


@torch.no_grad()
def moved(model: Any, seed: int) -> Any:
    """The network, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.05)
    return model


def box_of(mask_HW: Tensor) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the box where the mask is false."""
    rows, columns = ((~mask_HW).any(dim=dim).nonzero().flatten().tolist() for dim in (1, 0))
    if not rows:
        return (0, 0, 0, 0)
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def load(path: Path, parser: argparse.ArgumentParser) -> ModuleType:
    """Import one file, without the package around it."""
    if not path.is_file():
        parser.error(f"{path} is not there; give the folder of a clone")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(term: str, dtype: torch.dtype, value: float, gradients: float | None) -> Row:
    """A line of the report."""
    kind = str(dtype).removeprefix("torch.")
    return {"term": term, "dtype": kind, "value": value, "gradients": gradients, "mark": MARKS[dtype]}


def difference(ours: Tensor | None, theirs: Tensor | None) -> float:
    """Relative difference in the Euclidean norm; a missing gradient is zero."""
    if ours is None or theirs is None:
        rest = [x.norm().item() for x in (ours, theirs) if x is not None]
        return float(max(rest, default=0.0))
    norm, gap = float(theirs.norm().item()), float((ours - theirs).norm().item())
    return gap / norm if norm > 0 else gap


if __name__ == "__main__":
    main()
