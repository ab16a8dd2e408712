"""The verb `show`: where networks look, as one figure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.artifacts import MODEL_FILES
from attention_transfer.config.show import FIGURES, FRAMES, Show
from attention_transfer.data import read_image
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.attention_panels import Shown, maps_of
from attention_transfer.evaluation.epochs import KeptEpochs
from attention_transfer.evaluation.figure_rows import Rows, Seen
from attention_transfer.evaluation.image_files import ImageFile, find_images
from attention_transfer.evaluation.masks import MaskFiles, checked_mask
from attention_transfer.evaluation.subjects import (
    Subject,
    load_subjects,
    load_teacher,
    repaired_name,
    short_names,
    with_repaired,
)
from attention_transfer.places import expanded, out_problems
from attention_transfer.training import Display
from attention_transfer.ui import show_line
from attention_transfer.viewing import attention_figure, save, save_frames

log = logging.getLogger("attention_transfer")

_MOST = 800  # panels of a figure
_ABOVE = 0.05  # inches: below the title of a frame
_WORDS = {"class": "the class token", "mean": "the patches' mean query"}


def show_attention(config: Show) -> Figure:
    """The verb `show`."""
    read = [*config.images, *([config.masks] if config.masks else [])]
    raise_all(
        out_problems(
            config.out, *FIGURES, FRAMES, overwrite=config.overwrite, data=read, models=config.models, names=MODEL_FILES
        )
    )
    files = find_images(config.images)
    pictures = _pictures(files)
    masks = [_mask(file, config.masks, image) for file, image in pictures]
    if config.epochs:
        return _show_epochs(config, pictures, masks)
    subjects = load_subjects(config.models, config.image_size, config.device, config.blocks)
    names = config.labels or short_names(config.models)
    if config.repair:
        subjects = with_repaired(subjects, [image for _, image in pictures])
        names = [*names, *map(repaired_name, names)]
    seen = []
    with Display.open() as display, display.bar("looking", len(pictures)) as bar:
        for (_, image), mask_hw in zip(pictures, masks, strict=True):
            seen.append(_seen(image, mask_hw, _looked_at(subjects, image, config), subjects, config))
            _check_count(seen[0], len(pictures))
            bar.advance()
    _say_query(subjects, config)
    figure = _figure(seen, names, config, subjects)
    if config.out is not None:
        show_line(f"wrote {save(figure, expanded(config.out))}")
    return figure


def _pictures(files: Sequence[ImageFile]) -> list[tuple[ImageFile, Image.Image]]:
    """Every image; those of folders that can't be read are left out, and named."""
    found: list[tuple[ImageFile, Image.Image]] = []
    problems: list[str] = []
    skipped: list[str] = []
    for file in files:
        try:
            found.append((file, read_image(file.path)))
        except UserError as error:
            (problems if file.named else skipped).append(str(error))
    raise_all(problems)
    if not found:
        raise UserError(f"none of the {len(files)} images can be read; the first: {skipped[0]}")
    if skipped:
        log.warning("%d of %d images were left out:\n%s", len(skipped), len(files), "\n".join(skipped))
    return found


def _mask(file: ImageFile, folder: str | None, image: Image.Image) -> NDArray[np.bool_] | None:
    if folder is None:
        return None
    place = expanded(folder) / file.place
    there = sorted(place.parent.glob(f"{place.stem}.*")) if place.parent.is_dir() else []
    if len(there) != 1:
        what = f"{len(there)} masks" if there else "no mask"
        raise UserError(f"{file.path} has {what} of the name {file.place.with_suffix('')} in {folder}; give it one")
    mask: NDArray[np.bool_] = checked_mask(MaskFiles(there)[0], image.size, 0) != 0
    return mask


def _show_epochs(
    config: Show, pictures: Sequence[tuple[ImageFile, Image.Image]], masks: Sequence[NDArray[np.bool_] | None]
) -> Figure:
    """A frame for each epoch that a run keeps; the figure of the last one is returned."""
    (name,) = config.models
    assert config.out is not None  # as the configuration's problems say
    kept = KeptEpochs.required(name)
    (run,) = load_subjects([name], None, config.device, config.blocks)
    images = [image for _, image in pictures]
    teachers, theirs = _of_teacher(name, images, config)
    subjects = [*teachers, run]
    seen: dict[int, list[Seen]] = {}
    with Display.open() as display, display.bar("looking", len(kept.files) * len(images)) as bar:
        for epoch in kept.files:
            run.vit.load_state_dict(kept.weights(epoch))
            seen[epoch] = []
            for image, mask_hw, known in zip(images, masks, theirs, strict=True):
                shown = [*known, *_looked_at([run], image, config)]
                seen[epoch].append(_seen(image, mask_hw, shown, subjects, config))
                _check_count(seen[epoch][0], len(kept.files) * len(images))
                bar.advance()
    _say_query(subjects, config)
    figure_of = _frames(
        seen, [*("teacher" for _ in teachers), *(config.labels or short_names([name]))], config, subjects
    )
    out = save_frames(map(figure_of, seen), expanded(config.out))
    show_line(f"wrote {out}, with epochs {', '.join(map(str, seen))}")
    return figure_of(max(seen))


def _of_teacher(run: str, images: Sequence[Image.Image], config: Show) -> tuple[list[Subject], list[list[Shown]]]:
    """A run's teacher, and its maps for each image; neither where it can't be shown, which is said."""
    try:
        teacher = load_teacher(run, config.device)
        subjects = [] if teacher is None else [teacher]
        maps = [_looked_at(subjects, image, config) for image in images]
    except UserError as error:
        if config.difference:
            raise
        show_line(f"without the teacher: {error}")
        return [], [[] for _ in images]
    if config.difference and teacher is None:
        raise UserError(f"{run} has no teacher to show a difference from; leave difference out")
    return subjects, maps


def _frames(
    seen: Mapping[int, Sequence[Seen]], names: Sequence[str], config: Show, subjects: Sequence[Subject]
) -> Callable[[int], Figure]:
    """What draws an epoch; all share their scales."""
    scaled = [
        Seen(
            of[0].image,
            of[0].mask,
            [n for each in of for n in each.networks],
            [d for each in of for d in each.differences],
        )
        for of in zip(*seen.values(), strict=True)
    ]

    def figure_of(epoch: int) -> Figure:
        figure = _figure(seen[epoch], names, config, subjects, scaled)
        figure.suptitle(f"epoch {epoch}", y=1 + _ABOVE / figure.get_figheight(), va="bottom", fontsize=10)
        return figure

    return figure_of


def _check_count(first: Seen, times: int) -> None:
    """Refuse more panels than can be drawn, as the first of the images and epochs shows."""
    count = times * sum(len(shown.maps) + 1 for shown in first.all)
    if count > _MOST:
        raise UserError(f"that makes {count:,} panels, more than {_MOST}; show fewer images, layers or heads at a time")


def _say_query(subjects: Sequence[Subject], config: Show) -> None:
    """Name the networks whose query is not the class token, where none was asked for."""
    if config.query is None:
        for subject in (each for each in subjects if not each.spec.class_token):
            show_line(f"{subject.name} has no class token: the attention is that of the patches' mean query")


def _looked_at(subjects: Sequence[Subject], image: Image.Image, config: Show) -> list[Shown]:
    found, problems = [], []
    for subject in subjects:
        try:
            found.append(maps_of(subject, image, config))
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)
    return found


def _seen(
    image: Image.Image,
    mask_hw: NDArray[np.bool_] | None,
    found: Sequence[Shown],
    subjects: Sequence[Subject],
    config: Show,
) -> Seen:
    first = found[0]
    pairs = zip(subjects[1:], found[1:], strict=True) if config.difference else []
    differences = [shown.minus(first, (subject.name, subjects[0].name)) for subject, shown in pairs]
    return Seen(image, mask_hw, found, differences)


def _figure(
    seen: Sequence[Seen],
    names: Sequence[str],
    config: Show,
    subjects: Sequence[Subject],
    scaled: Sequence[Seen] | None = None,
) -> Figure:
    """Networks side by side where each has one map, and else a row for each network and, with several heads, layer."""
    titles = [*names, *(f"{name}\n− {names[0]}" for name in names[1:] if config.difference)]
    label = _label(seen, config, subjects)
    rows = Rows(seen, config, label, scaled=scaled)
    single = all(len(shown.maps) == 1 for each in seen for shown in each.networks)
    drawn = rows.of_images(titles) if single else rows.of_networks(titles)
    return attention_figure(drawn, rows.common, smooth=config.smooth, over=config.overlay)


def _label(seen: Sequence[Seen], config: Show, subjects: Sequence[Subject]) -> str:
    """What the values are, and what all maps have in common."""
    if config.source == "relevance":
        return f"relevance for {'the predicted class' if config.target is None else config.target}"
    default = "class" if all(subject.spec.class_token for subject in subjects) else "mean"
    mixed = len({subject.spec.class_token for subject in subjects}) > 1 and config.query is None
    query = config.query or default
    whose = "the class token or mean query" if mixed else _WORDS.get(query, query)
    if config.patch is not None or config.point is not None:
        whose = f"the patch at {query}"
    keys = [key for each in seen for shown in each.networks for key in shown.maps]
    common = [parts.pop() for parts in ({key[0] for key in keys}, {key[1] for key in keys}) if len(parts) == 1]
    of = ", ".join(part for part in common if part and part != "rollout")
    return f"{config.source} of {whose}{', ' + of if of else ''} (1\xa0=\xa0uniform)"
