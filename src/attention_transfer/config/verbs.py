"""What the verbs that put data and trained runs to use are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from attention_transfer.config.base import Config
from attention_transfer.config.choices import (
    Device,
    Format,
    FrozenProbe,
    MapSource,
    Mean,
    Probabilities,
    SplitName,
    Weighting,
)
from attention_transfer.config.pairing import PairingSettings


@dataclass(frozen=True, kw_only=True)
class Demo(Config):
    """Settings of `demo`."""

    quick: bool = False
    """A smoke test under a minute, on handwritten digits alone: one seed, two epochs; its numbers mean nothing."""

    full: bool = False
    """The experiment of the README: six seeds, 5 and 20 labels a class, three times the steps."""

    out: str = "runs/demo"
    """Folder for everything; quick and full get one of their own beside it."""

    def problems(self) -> list[str]:
        """Quick and full at once."""
        both = ["quick and full exclude each other; choose one"] if self.quick and self.full else []
        return super().problems() + both


@dataclass(frozen=True, kw_only=True)
class InspectData(Config):
    """Settings of `data`."""

    path: str = field(kw_only=False)
    """Data set, in the forms of `load_data`: a folder, a .csv or .tsv file, shards, hf/…, torchvision/…, digits."""

    strict: bool = False
    """Refuse damaged images instead of reporting them."""

    duplicates: bool = True
    """Look for pictures that are there more than once."""

    out: str | None = None
    """.json file for the report; default prints only, and cuts long lists."""

    overwrite: bool = False
    """Replace that file."""


@dataclass(frozen=True, kw_only=True)
class Predict(Config):
    """Settings of `predict`."""

    run: str = field(kw_only=False)
    """Folder of a finished run of `train` or of an exported model; or a model, e.g. timm/<name>."""

    images: list[str] = field(kw_only=False)
    """Image files, folders (with all below them), or patterns in quotes, e.g. "photos/**/*.jpg"."""

    top: int | None = None
    """How many classes to give for each; default 3, or all where there are fewer."""

    probabilities: Probabilities = "top"
    """top for those of the classes that are given, all for those of every class, in the file."""

    batch_size: int = 64
    """Images a forward pass."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    overlay: str | None = None
    """Folder for a picture of each image with the attention of the last block over it."""

    out: str | None = None
    """File for the predictions, .csv or .json; default shows a table only."""

    overwrite: bool = False
    """Replace that file, and pictures of the same names that were drawn before."""

    def problems(self) -> list[str]:
        """Words, and numbers below 1."""
        found = super().problems()
        if self.top is not None and self.top < 1:
            found.append(f"top is {self.top}; give at least 1 class")
        if self.batch_size < 1:
            found.append(f"batch_size is {self.batch_size}; give at least 1 image")
        return found


@dataclass(frozen=True, kw_only=True)
class Export(Config):
    """Settings of `export`."""

    run: str = field(kw_only=False)
    """Folder of a finished run of `train`."""

    to: Format = "timm"
    """timm for `timm.create_model("local-dir:…", pretrained=True)`; hf for transformers' `from_pretrained` and
    `pipeline`; onnx for one file, which holds a copied student's teacher too, as far as it is needed."""

    out: str | None = None
    """Folder of the exported model; default export/<format> in the run's folder."""

    batch_size: int | None = None
    """Images a forward pass of an ONNX model takes; default any number."""

    overwrite: bool = False
    """Replace an exported model in that folder."""

    def problems(self) -> list[str]:
        """Words, and a batch of no image."""
        if self.batch_size is None or self.batch_size >= 1:
            return super().problems()
        found = f"batch_size is {self.batch_size}; give at least 1 image, or leave it out for any number"
        return [*super().problems(), found]


@dataclass(frozen=True, kw_only=True)
class MakeEnsemble(Config):
    """Settings of `ensemble`."""

    runs: list[str] = field(kw_only=False)
    """Folders of finished runs of `train`, at least two, of one data set."""

    mean: Mean = "probabilities"
    """What is averaged: probabilities, or logits: the softmax comes after, which is the geometric mean of the
    probabilities, brought to sum to one."""

    weights: Weighting | None = None
    """equal, or validation for those of the lowest cross-entropy on the validation split; default equal."""

    out: str | None = None
    """.json file for the result; default shows tables only."""

    overwrite: bool = False
    """Replace that file."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Config):
    """Settings of `evaluate`."""

    models: list[str] = field(kw_only=False)
    """Classifiers: folders of runs, or models in the forms of `load_vit`, e.g. timm/<name>; of several, each two are
    compared on the same images."""

    data: str | None = None
    """Labelled images, in the forms of `load_data`; default the data set of the runs."""

    split: SplitName = "test"
    """Which of its images."""

    frozen: FrozenProbe | None = None
    """Judge the features of models that need no classification layer: knn, the 20 nearest training images, by DINO's
    protocol; linear, a linear probe, whose penalty validation images choose."""

    ensemble: bool = False
    """Also judge all models together, by the mean of their class probabilities."""

    shift: str | list[str] | None = None
    """Shifted images of the same classes, or several sets in a list: ImageNet-A, -R, -Sketch, -V2 or -C as published,
    what `corrupt` wrote, or any folder whose class folders are called as the data set's classes."""

    repair: bool = False
    """Also judge each model with a test-time register: the hidden units that make artefacts of patches, found on 50
    training images, are moved to a token of their own. Plain ViTs of timm only."""

    bins: int = 15
    """Bins of equal width for calibration."""

    limit: int | None = None
    """How many images to take, at even distances; default all."""

    image_size: int | None = None
    """Input pixels, height and width; default each model's own."""

    batch_size: int = 64
    """Images a forward pass."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    out: str | None = None
    """Folder for evaluation.json and the reliability diagram reliability.png, or a .json file alone; default shows
    tables only."""

    overwrite: bool = False
    """Replace these files."""

    def problems(self) -> list[str]:
        """No models or the same twice, and numbers below 1."""
        found = model_problems(self.models) + below_one(batch_size=self.batch_size, limit=self.limit)
        if self.ensemble and len(self.models) < 2:
            found.append("an ensemble needs at least two models; name more, or leave ensemble out")
        return found + ([] if self.bins >= 1 else [f"bins is {self.bins}; give at least 1"])


@dataclass(frozen=True, kw_only=True)
class Segment(Config):
    """Settings of `segment`."""

    models: list[str] = field(kw_only=False)
    """Networks to look at, side by side: folders of runs, or models in the forms of `load_vit`, e.g. timm/<name>."""

    data: str | None = None
    """Images with masks: digit-scenes, digit-scenes-shift, character-scenes, the folder of a published data set with
    masks (PASCAL VOC 2012, CUB-200-2011, Pets), or a folder of images; default the data set of the runs."""

    masks: str | None = None
    """Folder of the masks of a folder of images, with the same names but for the suffix. 0 is background, and each
    other value an object."""

    split: SplitName = "test"
    """Which images of a data set, or of a folder that has folders for train, val and test; others are taken whole."""

    source: MapSource = "attention"
    """attention of a block, or one map of all blocks: rollout, or relevance for the predicted class."""

    layers: int | str | list[int] | None = 1
    """Blocks whose attention is taken: n for the last n, "[0,5]", "first 6", "every 2", or all."""

    mass: float | list[float] = 0.6
    """Share of the attention that the foreground holds, or several in a list."""

    void: int | Literal["none"] | None = None
    """Value of pixels that count for nothing, or none; default 255 for PASCAL VOC, none for others."""

    limit: int | None = None
    """How many images to take, at even distances; default all."""

    repair: bool = False
    """Look at each network once more with a test-time register: the hidden units that make artefacts of patches, found
    on 50 training images without their masks (or else on those that are looked at), are moved to a token of their
    own. Plain ViTs of timm only."""

    training: int = 200
    """How many training images choose the fixed head and the size of the box; 0 leaves the fixed head out."""

    image_size: int | None = None
    """Input pixels, height and width; default each model's own."""

    batch_size: int = 8
    """Images a forward pass."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    out: str | None = None
    """.json file for the result, with the scores of each image; default shows a table only."""

    overwrite: bool = False
    """Replace that file."""

    def problems(self) -> list[str]:
        """No models, and numbers out of bounds."""
        found = model_problems(self.models)
        masses = self.mass if isinstance(self.mass, list) else [self.mass]
        if not masses or not all(0 < mass <= 1 for mass in masses):
            found.append(f"mass is {self.mass}; give a share above 0 and at most 1")
        if self.masks is not None and self.data is None:
            found.append("masks are given without their images; name the folder of these with --data")
        found += below_one(batch_size=self.batch_size, limit=self.limit)
        return found + ([] if self.training >= 0 else [f"training is {self.training}; give 0 images or more"])


def model_problems(models: list[str]) -> list[str]:
    """A sentence where no model is named, and for each that is named twice."""
    twice = [name for i, name in enumerate(models) if name in models[:i]]
    none = [] if models else ["no model is named; name one or more"]
    return none + [f"{name} is named twice; name each model once" for name in dict.fromkeys(twice)]


def below_one(**counts: int | None) -> list[str]:
    """A sentence for each number of images, by the name of its setting, that is below 1."""
    return [f"{name} is {n}; give at least 1 image" for name, n in counts.items() if n is not None and n < 1]


@dataclass(frozen=True, kw_only=True)
class MeasureSimilarity(Config):
    """Settings of `similarity`."""

    a: str = field(kw_only=False)
    """One network: the folder of a run, or a model in the forms of `load_vit`, e.g. timm/<name>."""

    b: str | None = field(default=None, kw_only=False)
    """Another, with the same patch grid; with what A was fine-tuned from, the result is A's drift. May be left out with
    epochs, for the run's own teacher, and with repair, for A itself."""

    data: str | None = field(default=None, kw_only=False)
    """Images, in the forms of `load_data`, or a folder of images without classes; default the data set of the runs."""

    split: SplitName = "test"
    """Which images of a data set that has splits."""

    layers: int | str | list[int] | None = None
    """Blocks of both: n for the last n, "[0,5]", "first 6", "every 2"; default all."""

    epochs: bool = False
    """Compare each epoch of the run A whose weights are kept: its drift over the training, which keeps them with
    recipe.keep_epochs."""

    repair: bool = False
    """Give B a test-time register: the hidden units that make artefacts of patches, found on 50 images, are moved to a
    token of their own. Where B is left out, it is A, so that the result is what a repair changes. Plain ViTs of timm
    only."""

    rows: int | Literal["all", "class"] = 8
    """Query rows that are compared: n drawn for each image, all, or class for the class token's."""

    limit: int | None = 200
    """How many images to take, at even distances; null for all."""

    image_size: int | None = None
    """Input pixels of both, height and width; default each model's own."""

    batch_size: int = 8
    """Images a forward pass, which is also the minibatch of CKA; that needs 4."""

    seed: int = 0
    """Of the draw of rows."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    out: str | None = None
    """Folder for similarity.json and the heat maps similarity.png, or a .json file alone; default shows tables only."""

    overwrite: bool = False
    """Replace these files."""

    def problems(self) -> list[str]:
        """Numbers below 1, no second network, and a size that no epoch has."""
        found = below_one(batch_size=self.batch_size, limit=self.limit)
        if self.b is None and not self.epochs and not self.repair:
            found.append("b is left out; name a second network, or set epochs to compare a run with its teacher")
        if self.epochs and self.image_size is not None:
            found.append("image_size is given, but the weights of epochs fit the run's own size; leave it out")
        return found + (
            [f"rows is {self.rows}; give 1 row or more"] if isinstance(self.rows, int) and self.rows < 1 else []
        )


@dataclass(frozen=True, kw_only=True)
class Doctor(Config):
    """Settings of `doctor`."""

    teacher: str = field(kw_only=False)
    """timm/<name>, hf/<name or folder>, torchvision/<name>, a folder or a weights file."""

    student: str | None = field(default=None, kw_only=False)
    """The same, or "standard" for a plain ViT of the teacher's size; default the student that `student_like(teacher)`
    makes."""

    pretrained: bool | str = False
    """Also load the teacher's weights: true, or a weights file; default only its architecture."""

    data: str | None = None
    """Images on which the teacher's attention is looked at as well, in the forms of `load_data`, or a folder of images
    without classes; that needs the weights."""

    limit: int = 50
    """How many of these images, at even distances."""

    image_size: int | None = None
    """Input pixels of both, height and width; default each model's own."""

    pairing: PairingSettings | None = None
    """How unequal parts are mapped."""

    def problems(self) -> list[str]:
        """Images without weights, or without what reads them."""
        found = super().problems() + below_one(limit=self.limit)
        if self.data is not None and self.pretrained is False:
            found.append("data is looked at with the teacher's weights; add --pretrained true, or name a weights file")
        if self.data is not None and (
            missing := [name for name in ("sklearn", "matplotlib") if find_spec(name) is None]
        ):
            found.append(f'data needs {" and ".join(missing)}; run: pip install "attention-transfer[train]"')
        return found


@dataclass(frozen=True, kw_only=True)
class MeasureCost(Config):
    """Settings of `bench`."""

    model: str = field(default="timm/vit_small_patch16_224", kw_only=False)
    """Architecture of teacher and student, in the forms of load_vit; weights are random."""

    methods: str = "floor,finetune,copy,distill,distill-reference,gta,logit-kd"
    """Separated by commas: floor, finetune, logit-kd, copy, distill (and each of its implementations:
    distill-reference, distill-chunked, distill-flash, distill-flex, distill-triton), materialised (distillation by
    maps in the step's own dtype), gta. One that can't serve here, or for which memory is too small, is left out, with
    the reason."""

    image_sizes: str = "224"
    """Input pixels, height and width, separated by commas."""

    batch_size: int = 8
    """Images a step, at the first image size; fewer at larger ones, so that tokens a step stay alike."""

    repeats: int = 10
    """How often each method runs."""

    device: Device = "cpu"
    """Where to compute: cpu, cuda or mps; auto takes a GPU where there is one. MPS counts no peak of memory: there it
    is what is allocated after a step."""

    dtype: str = "float32"
    """float32, or bfloat16 or float16 for autocast."""

    compiled: bool = False
    """Run the steps through torch.compile."""

    out: str = "runs/bench"
    """Folder for bench.json and bench.png."""

    overwrite: bool = False
    """Replace these two in that folder."""

    def problems(self) -> list[str]:
        """Words, a type of numbers that there is not, and numbers below 1."""
        found = super().problems()
        if self.dtype not in ("float32", "bfloat16", "float16"):
            found.append(f"dtype is {self.dtype}; choose float32, bfloat16 or float16")
        if min(self.batch_size, self.repeats) < 1:
            found.append("batch_size and repeats must be at least 1")
        return found


@dataclass(frozen=True, kw_only=True)
class NoSettings(Config):
    """Settings of a verb that has none."""
