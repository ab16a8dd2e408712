"""What the verbs that train are told: `train`, `pretrain` and `compare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypedDict

from attention_transfer.config.base import Config, Rule
from attention_transfer.config.choices import Device, Devices, LoggerName, Part, Pool, Strategy, Tune
from attention_transfer.config.pairing import PairingSettings
from attention_transfer.config.presets import preset
from attention_transfer.config.recipe import Recipe

DEFAULT_ARCHITECTURE = "builtin/vit_digits"

MAE_RECIPE = Recipe(beta2=0.95)
"""What masked autoencoding has of its own (He et al. 2022)."""


class Place(TypedDict):
    """Where a run is computed and logged, by the names that the engine has for it."""

    device: Device
    devices: Devices
    nodes: int | None
    strategy: Strategy
    loggers: list[LoggerName] | None


@dataclass(frozen=True, kw_only=True)
class Images(Config):
    """Which images are read."""

    data: str = "digits"
    """Data set, in the forms of [`load_data`][attention_transfer.data.load_data]: a folder with one for each class, a
    table, "digits", which is embedded, and others."""

    strict: bool = False
    """Refuse damaged image files instead of leaving them out."""

    image_size: int | None = None
    """Input pixels, height and width; default the model's own. Position embeddings are resampled."""


@dataclass(frozen=True, kw_only=True)
class Computing(Config):
    """Where a run is computed and logged."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes GPUs where there are any."""

    loggers: list[LoggerName] | None = None
    """Where metrics go besides the run's files: tensorboard, wandb, mlflow; default tensorboard."""


@dataclass(frozen=True, kw_only=True)
class Distributed(Computing):
    """The same, with several devices."""

    devices: Devices = None
    """Processes on each machine, one a device; auto takes every GPU; default what the launcher says, or 1."""

    nodes: int | None = None
    """Machines; default what torchrun or SLURM says, or 1."""

    strategy: Strategy = "ddp"
    """Of several devices: ddp, each holds the whole network; fsdp, each holds a share of it."""

    @property
    def place(self) -> Place:
        """As the engine takes it."""
        return {
            "device": self.device,
            "devices": self.devices,
            "nodes": self.nodes,
            "strategy": self.strategy,
            "loggers": self.loggers,
        }


@dataclass(frozen=True, kw_only=True)
class Student(Images, Computing):
    """What is common to the students of `train` and of `compare`."""

    teacher: str | None = None
    """Whose attention is transferred: timm/<name>, hf/<name or folder>, torchvision/<name>, the folder of a run or of
    an exported model, or a weights file. Methods without a teacher take only its architecture."""

    pretrained: bool | str = True
    """True for the teacher's own weights, false for random ones, or a weights file (safetensors or PyTorch)."""

    repair: bool = False
    """Move the teacher's artefacts out of its patches, into a test-time register, before its attention is transferred.
    The hidden units that make them are found on up to 50 of the labelled images. The student gets neither register nor
    moved units. Plain ViTs of timm only."""

    student: str | None = None
    """Architecture of a student with random weights, in the same forms; default the teacher's own."""

    pairing: PairingSettings | None = None
    """How the attention of a teacher of other depth, heads, patch grid or tokens is mapped to the student's."""

    epochs: int | None = None
    """Passes over the labelled images; takes the place of recipe.epochs."""

    pool: Pool | None = None
    """What the student's head reads: token, the class token; avg, the mean of the patches, as both Attention Transfer
    and MAE have it; default as in the teacher."""

    init: str | None = None
    """Where the student's weights come from: random, teacher, or another network in the forms of teacher; default the
    preset's."""

    init_parts: list[Part] | None = None
    """Which parts come from there, the rest at random: all, embeddings, blocks, attention, qkv, qk, mlp, norms, pool,
    head; default the preset's, which is all but the head."""

    trained: list[Part] | None = None
    """Which parts are trained, by the same names; default the preset's, which is all."""

    rules: list[Rule] | None = None
    """What binds the student to the teacher; default the preset's."""

    recipe: Recipe | None = None
    """Optimisation settings; what they leave open follows from what is trained. Default each preset's own; compare
    gives each method its preset's own values where these have the defaults."""


@dataclass(frozen=True, kw_only=True)
class Train(Student, Distributed):
    """Settings of `train`."""

    kept_elsewhere: ClassVar[tuple[str, ...]] = ("epochs", "tune")

    preset: str = field(default="distill", kw_only=False)
    """The method, e.g. scratch, finetune, copy, distill or gta; the verb presets lists all."""

    fraction: float = 1.0
    """Share of the training labels to use, above 0 and at most 1, the same in each class."""

    shots: int | None = None
    """Labelled images of each class; takes the place of fraction."""

    seed: int = 0
    """Of the labelled subset, the initial weights, the order and the augmentation."""

    tune_teacher: bool | None = None
    """Fine-tune the teacher on the same images first, in a run of its own beside this one (preset finetune); default
    the preset's."""

    tune: Tune | None = None
    """lr looks for the learning rate first, from a ninth to nine times the recipe's, by short runs in a folder beside
    this one and their validation accuracy; it takes about as long as the training itself."""

    out: str | None = None
    """Folder of the run; default runs/<preset>-<data>-<labels>-seed<seed>."""

    overwrite: bool = False
    """Replace another run in that folder."""

    @classmethod
    def defaults(cls, given: Mapping[str, object]) -> dict[str, object]:
        """Each preset has a recipe of its own."""
        return {"recipe": preset(str(given.get("preset", cls.preset))).own_recipe}


@dataclass(frozen=True, kw_only=True)
class Pretrain(Images, Distributed):
    """Settings of `pretrain`."""

    kept_elsewhere: ClassVar[tuple[str, ...]] = ("epochs",)

    model: str = field(default=DEFAULT_ARCHITECTURE, kw_only=False)
    """Architecture, randomly initialised: builtin/vit_digits or timm/<name>."""

    mask_ratio: float = 0.75
    """Share of the patches that are hidden, above 0 and below 1."""

    knn: bool = False
    """At each validation, classify the validation images by their 20 nearest training images (DINO's protocol), too.
    The data needs classes; training and the choice of the best epoch do not look at them."""

    seed: int = 0
    """Of the initial weights, the masks, the order and the augmentation."""

    epochs: int | None = None
    """Passes over the images; takes the place of recipe.epochs."""

    recipe: Recipe = MAE_RECIPE
    """Optimisation settings."""

    out: str | None = None
    """Folder of the run; default runs/teacher-<data>."""

    overwrite: bool = False
    """Replace another run in that folder."""


@dataclass(frozen=True, kw_only=True)
class Compare(Student):
    """Settings of `compare`: those of `train` that all students share, and the axes of the grid."""

    presets: str | list[str] = field(default="scratch,finetune,copy,distill,gta", kw_only=False)
    """Methods, separated by commas."""

    seeds: str | list[int] = "0,1,2"
    """Seeds, separated by commas."""

    shots: str | list[int] = ""
    """Labelled images of each class, separated by commas."""

    fractions: str | list[float] = ""
    """Shares of the labels, separated by commas; with shots, both are run. Default all labels."""

    grid: dict[str, list[object]] | None = None
    """Further axes: fields of train, or of the methods' rules, with the values that they take in turn, e.g.
    lr=1e-4,3e-4 or rules.weight=0.1,1 or teacher=A,B."""

    workers: int = 1
    """Processes that compute runs on this machine; each gets its share of the threads."""

    storage: str | None = None
    """URL of a database that keeps who computes which run, e.g. postgresql://USER@HOST/NAME or sqlite:///FILE; default
    a journal in the folder."""

    until_sure: bool = False
    """Add seeds, six at least, until each method is known to be better or worse than the first one, or the budget
    ends."""

    max_seeds: int | None = None
    """Budget of until_sure: seeds of each method, 6 to 50; default 20."""

    minutes: float | None = None
    """Budget of until_sure: time; no seed is begun that is not expected to end within it."""

    margin: float | None = None
    """Differences of test accuracy up to this size, e.g. 0.01, count as none: methods whose interval is inside it are
    said to be as good as each other."""

    out: str = "runs/comparison"
    """Folder of the comparison."""

    def problems(self) -> list[str]:
        """Words, no worker at all, a budget without a question, and a margin that no difference can be inside."""
        found = [f"workers is {self.workers}; give 1 or more"] if self.workers < 1 else []
        for name in ("max_seeds", "minutes"):
            if getattr(self, name) is not None and not self.until_sure:
                found.append(f"{name} is the budget of until_sure; add --until-sure, or leave it out")
        if self.minutes is not None and self.minutes <= 0:
            found.append(f"minutes is {self.minutes:g}; give more than 0")
        if self.margin is not None and not self.margin > 0:
            found.append(f"margin is {self.margin:g}; give the difference that would not matter, above 0, e.g. 0.01")
        return super().problems() + found
