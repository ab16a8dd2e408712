"""Training throughput on a folder of JPEGs, against timm's own training script, in turn and with the same settings.

    python benchmarks/folder_throughput.py PATH [--images 5000] [--pairs 3] [--out FILE]

PATH is a local clone of github.com/huggingface/pytorch-image-models (Apache 2.0); its `train.py` is run from there. The
images are drawn: 500 pixels wide and high, ten classes. Both train the same network from random weights with crops and
mirroring, AdamW and no averaged weights, for two epochs, of which the second counts. Both report images a second of
their own training loop. Ratios are ours over timm's, pair by pair.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES, SIDE = 10, 500


def main() -> None:
    """Draw the folder, time both in turn, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="local clone of timm")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not (args.path / "train.py").is_file():
        parser.error(f"{args.path} is no clone of timm (no train.py)")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        draw(place / "images", args.images)
        ours, theirs, waits = [], [], []
        for pair in range(args.pairs):
            speed, wait = run_ours(args, place, pair)
            ours.append(speed)
            waits.append(wait)
            theirs.append(run_timm(args, place, pair))
            print(f"pair {pair + 1}: {speed:.1f} images/s, {wait:.1%} waiting; timm {theirs[-1]:.1f}", flush=True)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"ratio: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    if args.out is not None:
        result = {
            "date": date.today().isoformat(),
            "device": f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("attention-transfer", "torch", "timm", "pillow")},
            "images": args.images,
            "pixels": SIDE,
            "model": args.model,
            "batch_size": args.batch_size,
            "workers": args.workers,
            "images_per_second": ours,
            "timm_images_per_second": theirs,
            "ratios": ratios,
            "data_wait": waits,
        }
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def draw(folder: Path, images: int) -> None:
    """Pictures of soft shapes and some noise, which a JPEG holds in some 60 kB; a hundredth more to validate."""
    generator = np.random.default_rng(0)
    for split, number in (("train", images), ("val", max(CLASSES, images // 100))):
        for i in range(number):
            target = folder / split / f"class{i % CLASSES}"
            target.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            soft = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
            noisy = soft + generator.integers(-12, 13, soft.shape, dtype=np.int16)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target / f"{i}.jpg", quality=85)


def run_ours(args: argparse.Namespace, place: Path, pair: int) -> tuple[float, float]:
    """Images a second, and the share of the time that was spent waiting for them."""
    recipe = {"epochs": 2, "batch_size": args.batch_size, "workers": args.workers, "augment": "light", "warmup": 0.0}
    recipe |= {"ema_decay": "null", "validate_every": 2, "lr": 1e-3}
    flags = [word for key, value in recipe.items() for word in (f"--recipe.{key}", str(value))]
    out = place / f"ours{pair}"
    words = ["train", "--preset", "scratch", "--student", f"timm/{args.model}", "--data", str(place / "images")]
    run([sys.executable, "-m", "attention_transfer", *words, "--out", str(out), *flags])
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return float(row["time/images_per_second"]), float(row["time/data_wait"])


def run_timm(args: argparse.Namespace, place: Path, pair: int) -> float:
    """Images a second of the second epoch, on its average."""
    settings = {"model": args.model, "batch-size": args.batch_size, "workers": args.workers, "num-classes": CLASSES}
    settings |= {"data-dir": place / "images", "val-split": "val", "epochs": 2, "warmup-epochs": 0, "device": "cpu"}
    settings |= {"opt": "adamw", "lr": 1e-3, "weight-decay": 0.05, "clip-grad": 1.0, "smoothing": 0.1}
    settings |= {"color-jitter": 0.0, "train-interpolation": "bicubic", "log-interval": 1}
    settings |= {"output": place / f"timm{pair}"}
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    text = run([sys.executable, str(args.path / "train.py"), *flags])
    last = [line for line in text.splitlines() if line.startswith("Train: 1 ")][-1]
    return float(re.findall(r"\(\S+s,\s+([\d.]+)/s\)", last)[0])


def run(command: list[str]) -> str:
    """Run a command to its end; its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
