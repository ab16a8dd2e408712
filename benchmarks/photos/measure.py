"""What a network knows of the cut-outs before it is trained, and where it and its runs look.

    python -m benchmarks.photos.measure NETWORK PICTURES [RUN ...] [--variant photographs] [--image-size 70] [--shots 5]
    python -m benchmarks.photos.measure NETWORK PICTURES --comparison FOLDER

PICTURES is what `cutouts.py` wrote. Prints, as CSV, how much of the attention of the last block is on the object, and
its IoU, for the network as it is, for one with random weights, and for each run; then the accuracy of a logistic
regression on the frozen class token, for four penalties and three choices of labelled images. With a comparison it
writes attention.csv, of its runs, and teacher.csv into the comparison's folder, where benchmarks/claims.py reads them.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from attention_transfer.data import FileImages, Normalise, Split, Splits, eval_pixels, labelled_subset, load_data
from attention_transfer.evaluation import load_run, looks
from attention_transfer.evaluation.foreground import Looks
from attention_transfer.evaluation.intervals import bca
from attention_transfer.vit import describe, load_vit, student_like

PENALTIES = (0.001, 0.01, 0.1, 1.0)
SEEDS = (0, 1, 2)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--variant", default="photographs", choices=("plain", "photographs", "shift"))
    parser.add_argument("--image-size", type=int, default=70)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--comparison", type=Path)
    args = parser.parse_args()
    splits = load_data(str(args.pictures / args.variant))
    vit = load_vit(args.network, image_size=args.image_size)
    if args.comparison is not None:
        write_attention(args.comparison, vit, masked(splits.test, args.pictures, args.variant))
        return
    print("network,test_accuracy,attention_share,attention_iou")
    for line in attention(vit, masked(splits.test, args.pictures, args.variant), args.runs):
        print(line, flush=True)
    print("\nseed,penalty,validation_accuracy,test_accuracy")
    for line in probe(vit, splits, args.shots):
        print(line, flush=True)


def masked(split: Split, pictures: Path, variant: str) -> Split:
    """A split with the masks that lie beside its variant."""
    assert isinstance(split.images, FileImages)
    home = (pictures / variant).resolve()
    files = [pictures / "masks" / variant / path.resolve().relative_to(home) for path in split.images.paths]
    return replace(split, masks=np.stack([np.asarray(Image.open(file)) > 127 for file in files]))


def attention(vit: nn.Module, test: Split, runs: Sequence[str]) -> Iterator[str]:
    """A line for the network, for one like it with random weights, and for each run."""
    found = looks(vit, vit, test)
    yield f"as it is,,{found.share:.4f},{found.iou:.4f}"
    torch.manual_seed(0)
    untrained = student_like(vit, num_classes=0)
    found = looks(untrained, untrained, test)
    yield f"random,,{found.share:.4f},{found.iou:.4f}"
    for path in runs:
        run = load_run(path)
        found = looks(run.network, run.network.student, test)
        yield f"{Path(path).name},{run.summary['test']['accuracy']:.4f},{found.share:.4f},{found.iou:.4f}"


def write_attention(comparison: Path, vit: nn.Module, test: Split) -> None:
    """Where the network and each run of a comparison look."""
    names = ("attention_iou", "iou_low", "iou_high", "attention_share", "share_low", "share_high")
    with (comparison / "teacher.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, estimates(looks(vit, vit, test))])
    with (comparison / "results.csv").open(newline="") as rows, (comparison / "attention.csv").open("w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("labels", "preset", "seed", *names))
        for row in csv.DictReader(rows):
            run = load_run(comparison / "runs" / Path(row["run"]).name)
            found = looks(run.network, run.network.student, test)
            writer.writerow((row["labels"], row["preset"], row["seed"], *estimates(found)))


def estimates(found: Looks) -> list[float | None]:
    """IoU and share, each with its BCa interval over images."""
    return [value for each in (found.ious, found.shares) for value in astuple(bca(each))]


def probe(vit: nn.Module, splits: Splits, shots: int) -> Iterator[str]:
    """Logistic regressions on the class token of the middle crop."""
    known = {name: features(vit, part) for name, part in (("validation", splits.validation), ("test", splits.test))}
    for seed in SEEDS:
        chosen = splits.train.take(labelled_subset(splits.train.labels, shots=shots, seed=seed))
        tokens = features(vit, chosen)
        for penalty in PENALTIES:
            head = LogisticRegression(C=penalty, max_iter=2000).fit(tokens, chosen.labels)
            right = [head.score(known[name], getattr(splits, name).labels) for name in known]
            yield f"{seed},{penalty:g},{right[0]:.3f},{right[1]:.3f}"


@torch.no_grad()
def features(vit: nn.Module, split: Split) -> NDArray[np.float32]:
    """Class tokens after the last norm, (images, width), in batches of 64."""
    spec, found = describe(vit), []
    pixels, prepare = eval_pixels(spec), Normalise(spec)
    for start in range(0, len(split), 64):
        images = torch.stack([pixels(split.images[i]) for i in range(start, min(start + 64, len(split)))])
        found.append(vit.forward_features(prepare(images))[:, 0])  # type: ignore[operator] # timm's
    tokens: NDArray[np.float32] = torch.cat(found).numpy()
    return tokens


if __name__ == "__main__":
    main()
