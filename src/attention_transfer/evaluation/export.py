"""The verb `export`: a trained run as a model of timm, of transformers, or as one ONNX file."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from attention_transfer.artifacts import EXPORT, RUN, is_export, replacing_problems
from attention_transfer.config.choices import Format
from attention_transfer.config.export import Export
from attention_transfer.data import eval_transform, load_data
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.classifier import LoadedRun, load_run
from attention_transfer.evaluation.formats import Reopened, format_problems, reopened, write_format
from attention_transfer.evaluation.preprocessing import grey_levels_apart
from attention_transfer.places import check_writable, expanded, folder_problems, same_or_inside
from attention_transfer.training import RunFolder
from attention_transfer.training.card import model_card
from attention_transfer.training.teacher_repair import TeacherRepair
from attention_transfer.writing import whole_folder, write_whole

log = logging.getLogger("attention_transfer")

MARK = 1e-4
"""How far an exported model's logits may be from the run's."""

_RANDOM, _REAL, _BATCH = 16, 64, 16
_RECORD = "export.json"
_LEVELS = 3.0  # what the rounding of two resampling codes may differ by, of 255


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how near it is to the run.

    Attributes:
        path: the folder.
        format: "timm", "hf" or "onnx".
        difference: the largest absolute difference between logits of the run and of the exported model.
        random_images: normal noise that this was measured on.
        real_images: validation images that it was measured on; 0 where the data was not there.
        grey_levels: how far the folder's own preprocessing is from that of training, at most, of 255; `None` for onnx,
            where the caller does it.
    """

    path: Path
    format: Format
    difference: float
    random_images: int
    real_images: int
    grey_levels: float | None


def export_run(config: Export) -> ExportReport:
    """The verb `export`."""
    run, to = config.run, config.to
    target = expanded(config.out) if config.out is not None else Path(run) / "export" / to
    raise_all(config.problems() + _problems(run, target, overwrite=config.overwrite))
    loaded = load_run(run)
    raise_all(format_problems(loaded, to, config.batch_size))
    check_writable(target)
    with whole_folder(target, EXPORT) as folder:
        write_format(loaded, to, folder, config.batch_size)
        report = _checked(loaded, to, folder, target, config.batch_size)
        _describe(loaded, report, folder)
    log.info("%s: %s in %s; %s", run, to, target, " ".join(_sentences(report)))
    return report


def _problems(run: str, target: Path, *, overwrite: bool) -> list[str]:
    problems = []
    if not Path(run).is_dir():
        problems.append(f"there is no run {run}; check the path")
    elif not (Path(run) / "config.yaml").is_file():
        problems.append(f"{run} holds no run (no config.yaml); name the folder that `train` wrote")
    if target.is_file():
        problems.append(f"{target} is a file; choose a folder with --out")
    elif target.is_mount():
        problems.append(f"{target} is a mounted disk, which can't be replaced; choose a folder in it with --out")
    elif target.is_dir() and any(target.iterdir()):
        if not is_export(target):
            problems.append(f"{target} is not empty and holds no exported model; choose another folder with --out")
        elif not overwrite:
            problems.append(f"{target} exists; choose another folder with --out, or replace it with --overwrite")
    own = {name.partition("/")[0] for name in RUN if "/" in name}
    if any(same_or_inside(target, Path(run, name)) for name in own):
        problems.append(f"{target} is a folder of the run itself; choose another one with --out")
    return problems or [
        *folder_problems(target, models=[run]),
        *(replacing_problems(target) if target.exists() else []),
    ]


def _checked(loaded: LoadedRun, to: Format, folder: Path, target: Path, batch_size: int | None) -> ExportReport:
    """Open the folder by the library of its format, and compare it with the run.

    Raises:
        UserError: it can't be opened, or it answers otherwise.
    """
    try:
        model = reopened(loaded, to, folder, batch_size)
        random, real = _random(loaded), _validation(loaded)
        difference = _difference(loaded, model, torch.cat([random, real]))
        levels = None if model.pixels is None else grey_levels_apart(loaded.spec, model.pixels)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the model in {to}'s format could not be run ({reason[:160]}); choose another format"
        ) from error
    if not difference <= MARK:  # NaN is refused too
        raise UserError(
            f"the exported model's logits are {difference:.1e} from the run's, more than {MARK:g}, so it was not kept; "
            "choose another format"
        )
    if levels is not None and levels > _LEVELS:
        log.warning(
            "the preprocessing of %s differs from that of training by up to %.0f grey levels of 255; give the "
            "model images that attention_transfer.data.eval_transform prepared",
            target,
            levels,
        )
    return ExportReport(target, to, difference, len(random), len(real), levels)


def _random(loaded: LoadedRun) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_RANDOM, loaded.spec.channels, *loaded.spec.image_size, generator=generator)


def _validation(loaded: LoadedRun) -> Tensor:
    """The first validation images of the run's data set; none, where it is not there."""
    data = RunFolder(loaded.path).config().data
    try:
        images = load_data(data).validation.images
    except UserError as error:
        log.info("checked on random images alone, because the data set is not there: %s", error)
        return torch.empty(0, loaded.spec.channels, *loaded.spec.image_size)
    transform = eval_transform(loaded.spec)
    return torch.stack([transform(images[i]) for i in range(min(_REAL, len(images)))])


@torch.no_grad()
def _difference(loaded: LoadedRun, model: Reopened, images: Tensor) -> float:
    batches = images.split(_BATCH)
    apart = [(loaded.network(batch) - model.logits(batch)).abs().max() for batch in batches]
    return float(torch.stack(apart).max())


def _describe(loaded: LoadedRun, report: ExportReport, folder: Path) -> None:
    """The model card, and what was measured, beside the model."""
    config = RunFolder(loaded.path).trained_config()
    card = model_card(
        config,
        loaded.summary,
        loaded.spec,
        loaded.classes,
        form=report.format,
        checks=_sentences(report),
        repair=str(TeacherRepair.of_run(loaded.path)) if config.repair else None,
    )
    write_whole(folder / "README.md", card)
    record = {name: value for name, value in asdict(report).items() if name != "path"}
    write_whole(folder / _RECORD, json.dumps(record, indent=2) + "\n")


def _sentences(report: ExportReport) -> list[str]:
    real = f" and {report.real_images} validation images" if report.real_images else ""
    said = [
        f"Logits differ from the run's by at most {report.difference:.1e} (on {report.random_images} random{real}"
        f"{'' if real else ' images'}; at most {MARK:g} is allowed)."
    ]
    if report.grey_levels is not None:
        said.append(
            f"The preprocessing of this folder differs from that of training by at most {report.grey_levels:.1f} grey "
            "levels of 255."
        )
    return said
