"""The verb `segment`: attention of several networks held against masks, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from rich.table import Table

from attention_transfer.artifacts import MODEL_FILES
from attention_transfer.config.choices import MapSource
from attention_transfer.config.segment import Segment
from attention_transfer.errors import raise_all
from attention_transfer.evaluation.intervals import Estimate, PairedDifference, paired_difference
from attention_transfer.evaluation.masked_images import MaskedImages, load_masked
from attention_transfer.evaluation.segmentation import Segmentation
from attention_transfer.evaluation.segmentation import segment as segment_network
from attention_transfer.evaluation.subjects import (
    Subject,
    counted,
    data_of,
    layers_of,
    load_subjects,
    short_names,
    with_repaired,
)
from attention_transfer.places import expanded, out_problems
from attention_transfer.ui import console, show_line
from attention_transfer.vit import Indices
from attention_transfer.writing import write_whole

_COLUMNS = {
    "dino": "dino\n(oracle)",
    "fixed-head": "fixed-\nhead",
    "merged-mean": "merged-\nmean",
    "merged-max": "merged-\nmax",
    "centre-box": "centre-\nbox",
}
_OF_ONE_MAP = {"merged-mean": "map", "centre-box": "centre-\nbox"}
"""Rollout and relevance have one map, so that there are no heads to choose from."""


@dataclass(frozen=True)
class ModelSegmentation:
    """What `segment` found out about one network.

    Attributes:
        model: as it was named.
        data: the images.
        image_size: what the network takes, height and width.
        query: whose attention it is: the "class" token's, or that of the "mean" of the patches' queries.
        results: for each layer, and each mass in it.
    """

    model: str
    data: str
    image_size: tuple[int, int]
    query: str
    results: tuple[Segmentation, ...]


@dataclass(frozen=True)
class SegmentationDifference:
    """How far two networks differ on the same images, first minus second.

    Attributes:
        models: their names.
        layer: the block; `None` where the maps are of all blocks.
        mass: the share of a map that the foreground holds.
        scores: of the Jaccard index, by protocol.
    """

    models: tuple[str, str]
    layer: int | None
    mass: float
    scores: Mapping[str, PairedDifference]


def segment_models(config: Segment) -> list[ModelSegmentation]:
    """The verb `segment`."""
    read = [name for name in (config.data, config.masks) if name is not None]
    raise_all(
        out_problems(
            config.out, ".json", overwrite=config.overwrite, data=read, models=config.models, names=MODEL_FILES
        )
    )
    layers = layers_of(config.layers)
    subjects = load_subjects(config.models, config.image_size, config.device, layers)
    if config.source == "relevance":
        raise_all(
            [
                f"{s.name} has no classes, which relevance is for; choose attention or rollout"
                for s in subjects
                if not s.classes
            ]
        )
    data = data_of(subjects, config.data)
    masked = load_masked(
        data, config.masks, config.split, limit=config.limit, training=config.training, void=config.void
    )
    if config.repair:
        subjects = with_repaired(subjects, masked.images if masked.training is None else masked.training[0])
    found = [_looked_at(subject, data, masked, config, layers) for subject in subjects]
    _show(found, config.source)
    if config.out is not None:
        write_whole(expanded(config.out), json.dumps([asdict(each) for each in found], indent=2) + "\n")
    return found


def segmentation_differences(found: Sequence[ModelSegmentation]) -> tuple[SegmentationDifference, ...]:
    """Of every two networks with the same layer and mass, in order; protocols that both have."""
    return tuple(
        SegmentationDifference(
            (one.model, other.model),
            a.layer,
            a.mass,
            {
                name: paired_difference(a.per_image[name], b.per_image[name])
                for name in a.per_image
                if name in b.per_image and name != "centre-box"
            },
        )
        for one, other in combinations(found, 2)
        for a in one.results
        for b in other.results
        if (a.layer, a.mass) == (b.layer, b.mass)
    )


def _looked_at(
    subject: Subject, data: str, masked: MaskedImages, config: Segment, layers: Indices
) -> ModelSegmentation:
    with counted(masked.images, f"looking with {subject.name}") as images:
        results = segment_network(
            subject.network,
            images,
            masked.masks,
            vit=subject.vit,
            source=config.source,
            layers=layers,
            masses=config.mass if isinstance(config.mass, list) else [config.mass],
            training=masked.training,
            void=masked.void,
            batch=config.batch_size,
        )
    query = "class" if subject.spec.class_token else "mean"
    return ModelSegmentation(subject.name, data, subject.spec.image_size, query, results)


def _show(found: Sequence[ModelSegmentation], source: MapSource) -> None:
    """A row for each network, layer and mass; a column for each protocol."""
    first = found[0].results[0]
    columns = _COLUMNS if source == "attention" else _OF_ONE_MAP
    columns = {name: heading for name, heading in columns.items() if name in first.scores}
    show_line(
        f"Jaccard index, % (95 %), of {source} with masks: {first.images} images of {found[0].data}, "
        f"{first.objects} objects"
    )
    table = Table()
    table.add_column("model", overflow="fold", min_width=12)
    for heading in ("layer", "mass", *columns.values()):
        table.add_column(heading, justify="right")
    for name, model in zip(short_names([each.model for each in found]), found, strict=True):
        for result in model.results:
            cells = (_in_percent(result.scores[column]) for column in columns)
            layer = "all" if result.layer is None else str(result.layer)
            table.add_row(name, layer, f"{result.mass:g}", *cells)
    console.print(table)
    if differences := segmentation_differences(found):
        console.print(_difference_table(differences, found))
    if source == "attention":
        show_line("dino takes the best head for each object, which only the mask can tell: an oracle")
    for model in found:
        if model.query == "mean":
            show_line(f"{model.model} has no class token: the row is that of the patches' mean query")
    if first.head is None and source == "attention":
        show_line("there are no training images to choose a head on, so that fixed-head is left out")


def _difference_table(differences: Sequence[SegmentationDifference], found: Sequence[ModelSegmentation]) -> Table:
    names = dict(zip((each.model for each in found), short_names([each.model for each in found]), strict=True))
    table = Table(title="differences on the same images, first minus second, points (95 %), p", title_justify="left")
    columns = list(dict.fromkeys(name for each in differences for name in each.scores))
    table.add_column("", overflow="fold", min_width=12)
    for heading in ("layer", "mass", *columns):
        table.add_column(heading, justify="right")
    for each in differences:
        layer = "all" if each.layer is None else str(each.layer)
        cells = (_difference_cell(each.scores[name]) if name in each.scores else "–" for name in columns)
        table.add_row(" − ".join(names[model] for model in each.models), layer, f"{each.mass:g}", *cells)
    return table


def _difference_cell(of: PairedDifference) -> str:
    shown = f"{100 * of.difference.value:+.1f}"
    if of.difference.low is not None and of.difference.high is not None:
        shown += f"\n{100 * of.difference.low:+.1f} to {100 * of.difference.high:+.1f}"
    return f"{shown}\np {of.p:.2g}"


def _in_percent(share: Estimate) -> str:
    """A share with its interval."""
    if share.low is None or share.high is None:
        return f"{100 * share.value:.1f}"
    return f"{100 * share.value:.1f}\n{100 * share.low:.1f}–{100 * share.high:.1f}"
