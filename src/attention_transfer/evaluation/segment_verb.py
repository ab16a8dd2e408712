"""The verb `segment`: attention of several networks held against masks, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from attention_transfer.artifacts import MODEL_FILES
from attention_transfer.config.choices import MapSource
from attention_transfer.config.verbs import Segment
from attention_transfer.errors import raise_all
from attention_transfer.evaluation.intervals import Estimate
from attention_transfer.evaluation.masked_images import MaskedImages, load_masked
from attention_transfer.evaluation.segmentation import Segmentation
from attention_transfer.evaluation.segmentation import segment as segment_network
from attention_transfer.evaluation.subjects import Subject, counted, data_of, layers_of, load_subjects, short_names
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
    found = [_looked_at(subject, data, masked, config, layers) for subject in subjects]
    _show(found, config.source)
    if config.out is not None:
        write_whole(expanded(config.out), json.dumps([asdict(each) for each in found], indent=2) + "\n")
    return found


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
    if source == "attention":
        show_line("dino takes the best head for each object, which only the mask can tell: an oracle")
    for model in found:
        if model.query == "mean":
            show_line(f"{model.model} has no class token: the row is that of the patches' mean query")
    if first.head is None and source == "attention":
        show_line("there are no training images to choose a head on, so that fixed-head is left out")


def _in_percent(share: Estimate) -> str:
    """A share with its interval."""
    if share.low is None or share.high is None:
        return f"{100 * share.value:.1f}"
    return f"{100 * share.value:.1f}\n{100 * share.low:.1f}–{100 * share.high:.1f}"
