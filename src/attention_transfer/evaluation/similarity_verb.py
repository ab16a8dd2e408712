"""The verb `similarity`: two networks on the same images, block by block."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from attention_transfer.config.verbs import MeasureSimilarity
from attention_transfer.evaluation.network_similarity import Matrix, Similarity
from attention_transfer.evaluation.network_similarity import similarity as measured
from attention_transfer.evaluation.profile import LayerProfile
from attention_transfer.evaluation.subjects import (
    checked_out,
    counted,
    data_of,
    images_of,
    layers_of,
    load_subjects,
    short_names,
)
from attention_transfer.ui import console, show_line
from attention_transfer.viewing import HeatMap, heat_maps, save
from attention_transfer.writing import write_whole

_FILES = ("similarity.json", "similarity.png")


def compare_networks(config: MeasureSimilarity) -> Similarity:
    """The verb `similarity`."""
    names = [config.a, config.b]
    target = checked_out(config.out, _FILES, overwrite=config.overwrite, data=[config.data], models=names)
    layers = layers_of(config.layers)
    a, b = load_subjects(names, config.image_size, config.device, layers)
    data = data_of([a, b], config.data)
    with counted(
        images_of(data, config.split, config.limit), f"comparing {config.a} and {config.b}", times=2
    ) as images:
        result = measured(
            a.network,
            b.network,
            images,
            vit_a=a.vit,
            vit_b=b.vit,
            layers=layers,
            rows=config.rows,
            batch=config.batch_size,
            seed=config.seed,
        )
    _show(result, data, short_names(names))
    if target is not None:
        content = {"a": config.a, "b": config.b, "data": data, **asdict(result)}
        write_whole(target.json, json.dumps(content, indent=2) + "\n")
        if target.folder is not None:
            _draw(result, target.folder / _FILES[1])
    return result


def _show(result: Similarity, data: str, names: Sequence[str]) -> None:
    """Blocks of the same relative depth, and then each network by itself."""
    show_line(f"{names[0]} (A) and {names[1]} (B): {result.images} images of {data}, {result.rows} rows each")
    table = Table()
    last = max(1, len(result.layers_a) - 1)
    partners = [result.layers_b[round(i * (len(result.layers_b) - 1) / last)] for i in range(len(result.layers_a))]
    columns: dict[str, Matrix | None] = {
        "JS,\nsame head": result.js.same,
        "JS,\nbest head": result.js.best,
        "JS,\noptimal": result.js.optimal,
        "JS,\naveraged": result.js.averaged,
        "KL(A‖B),\noptimal": result.kl.optimal,
        "CKA": result.cka,
    }
    for heading in ("block\nof A", "block\nof B", *columns):
        table.add_column(heading, justify="right")
    for i, (layer, partner) in enumerate(zip(result.layers_a, partners, strict=True)):
        cells = ("–" if matrix is None else f"{result.by_depth(matrix)[i]:.3f}" for matrix in columns.values())
        table.add_row(str(layer), str(partner), *cells)
    console.print(table)
    if result.tokens == "patches":
        show_line("the special tokens differ: divergences are of attention among patches alone")
    if result.cka is None:
        show_line("no batch had the 4 images that CKA needs")
    console.print(_profiles(result))


def _profiles(result: Similarity) -> Table:
    table = Table(title="what each one's attention is like", title_justify="left")
    for heading in ("", "block", "entropy,\nnats", "patches with\n95 %", "distance,\npatches", "JS between\nheads"):
        table.add_column(heading, justify="right")
    for heading in ("on prefix\ntokens, %", "on sinks,\n%", "high-norm\npatches, %"):
        table.add_column(heading, justify="right")
    for name, profiles in (("A", result.profile_a), ("B", result.profile_b)):
        for profile in profiles:
            table.add_row(name, *_cells(profile))
        table.add_section()
    return table


def _cells(of: LayerProfile) -> tuple[str, ...]:
    distance, diversity = ("–" if value is None else f"{value:.2f}" for value in (of.distance, of.diversity))
    shares = (f"{100 * share:.1f}" for share in (of.prefix_mass, of.sink_mass, of.high_norm))
    return str(of.layer), f"{of.entropy:.2f}", f"{of.patches_95:.1f}", distance, diversity, *shares


def _draw(result: Similarity, path: Path) -> None:
    panels = [
        HeatMap("JS divergence, optimal heads", result.js.optimal, math.log(2)),
        HeatMap("JS divergence, averaged heads", result.js.averaged, math.log(2)),
    ]
    if result.cka is not None:
        panels.append(HeatMap("CKA of outputs", result.cka, 1.0))
    blocks = {"rows": result.layers_a, "columns": result.layers_b}
    save(heat_maps(panels, ylabel="block of A", xlabel="block of B", **blocks), path)
