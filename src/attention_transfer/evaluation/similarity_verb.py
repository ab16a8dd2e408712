"""The verb `similarity`: two networks on the same images, block by block."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.table import Table

from attention_transfer.config.similarity import MeasureSimilarity
from attention_transfer.errors import UserError
from attention_transfer.evaluation.epochs import KeptEpochs
from attention_transfer.evaluation.network_similarity import Drift, Matrix, Similarity
from attention_transfer.evaluation.network_similarity import similarity as measured
from attention_transfer.evaluation.profile import LayerProfile
from attention_transfer.evaluation.subjects import (
    Subject,
    checked_out,
    counted,
    data_of,
    images_of,
    layers_of,
    load_subjects,
    load_teacher,
    short_names,
    with_repaired,
)
from attention_transfer.training.teacher_repair import REPAIRED_ON
from attention_transfer.ui import console, show_line
from attention_transfer.viewing import HeatMap, heat_maps, save
from attention_transfer.vit import Indices
from attention_transfer.writing import write_whole

_FILES = ("similarity.json", "similarity.png")
_CKA = "CKA of outputs"


def compare_networks(config: MeasureSimilarity) -> Similarity:
    """The verb `similarity`."""
    names = [name for name in (config.a, config.b) if name is not None]
    target = checked_out(config.out, _FILES, overwrite=config.overwrite, data=[config.data], models=names)
    layers = layers_of(config.layers)
    kept = KeptEpochs.required(config.a) if config.epochs else KeptEpochs()
    a, b = _pair(names, config, layers)
    data = data_of([a, b], config.data)
    if config.repair:
        b = with_repaired([b], images_of(data, "train", REPAIRED_ON))[-1]
    taken = images_of(data, config.split, config.limit)
    with counted(taken, f"comparing {a.name} and {b.name}", times=2 * max(1, len(kept.files))) as images:
        compared = partial(
            measured,
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
        result = _over_epochs(compared, a, kept) if config.epochs else compared()
    (_show_drift if config.epochs else _show)(result, data, short_names([a.name, b.name]))
    if target is not None:
        content = {"a": a.name, "b": b.name, "data": data, **asdict(result)}
        write_whole(target.json, json.dumps(content, indent=2) + "\n")
        if target.folder is not None:
            (_draw_drift if config.epochs else _draw)(result, target.folder / _FILES[1])
    return result


def _pair(names: Sequence[str], config: MeasureSimilarity, layers: Indices) -> tuple[Subject, Subject]:
    """The two networks; the second is the first one's teacher where none is named."""
    first, *others = load_subjects(names, config.image_size, config.device, layers)
    if config.repair and not others and not config.epochs:
        return first, first
    second = others[0] if others else load_teacher(config.a, config.device)
    if second is None:
        raise UserError(f"{config.a} has no teacher; name the network to compare it with")
    return first, second


def _over_epochs(compared: Callable[[], Similarity], run: Subject, kept: KeptEpochs) -> Similarity:
    """The result of the last epoch, with the drift over all that are kept."""
    results = {}
    for epoch in kept.files:
        run.vit.load_state_dict(kept.weights(epoch))
        results[epoch] = compared()
        if results[epoch].js.same is None and results[epoch].cka is None:
            raise UserError(
                "there is nothing to follow over epochs: the networks' numbers of heads differ, and no batch had the "
                "4 images that CKA needs; raise batch_size or limit"
            )
    return replace(results[max(results)], drift=tuple(result.after(epoch) for epoch, result in results.items()))


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
    _show_limits(result)
    console.print(_profiles(result))


def _show_drift(result: Similarity, data: str, names: Sequence[str]) -> None:
    """A table for each figure: a row an epoch, a column a block of the run."""
    show_line(f"{names[0]} from {names[1]}, by epoch: {result.images} images of {data}, {result.rows} rows each")
    for title, rows in _drift_figures(result.drift).items():
        table = Table(title=title, title_justify="left")
        for heading in ("epoch", *(f"block\n{layer}" for layer in result.layers_a)):
            table.add_column(heading, justify="right")
        for drift, row in zip(result.drift, rows, strict=True):
            table.add_row(str(drift.epoch), *(f"{value:.3f}" for value in row))
        console.print(table)
    if result.js.same is None:
        show_line("the numbers of heads differ, so that there is no divergence of heads of the same index")
    _show_limits(result)


def _drift_figures(drift: Sequence[Drift]) -> dict[str, Matrix]:
    """The figures that there are: a row for each epoch, a column for each block."""
    js = tuple(each.js for each in drift if each.js is not None)
    cka = tuple(each.cka for each in drift if each.cka is not None)
    return {title: rows for title, rows in (("JS divergence, same head", js), (_CKA, cka)) if rows}


def _show_limits(result: Similarity) -> None:
    if result.tokens == "patches":
        show_line("the special tokens differ: divergences are of attention among patches alone")
    if result.cka is None:
        show_line("no batch had the 4 images that CKA needs")


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
        panels.append(HeatMap(_CKA, result.cka, 1.0))
    blocks = {"rows": result.layers_a, "columns": result.layers_b}
    save(heat_maps(panels, ylabel="block of A", xlabel="block of B", **blocks), path)


def _draw_drift(result: Similarity, path: Path) -> None:
    panels = [
        HeatMap(title, rows, 1.0 if title == _CKA else max(map(max, rows)) or 1.0)  # all may be 0
        for title, rows in _drift_figures(result.drift).items()
    ]
    epochs = [drift.epoch for drift in result.drift]
    save(heat_maps(panels, ylabel="epoch", xlabel="block of the run", rows=epochs, columns=result.layers_a), path)
