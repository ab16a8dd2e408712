"""The page as one file that needs neither this program nor a network connection.

It holds the attention of all queries in a few layers, in 8 bits a value and a scale a row, so that a value is right
within 1/510 of its row's maximum.

Shapes: H heads, Q queries, N tokens.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from attention_transfer.artifacts import MODEL_FILES
from attention_transfer.attention import AttentionCall
from attention_transfer.config.explore import Explore
from attention_transfer.errors import UserError
from attention_transfer.evaluation.subjects import layers_of
from attention_transfer.explorer.album import Picture
from attention_transfer.explorer.answers import Json
from attention_transfer.explorer.front_end import page_script
from attention_transfer.explorer.network import ExploredNetwork
from attention_transfer.explorer.session import Explorer, Session, described
from attention_transfer.places import expanded, out_problems
from attention_transfer.ui import show_line
from attention_transfer.vit import Indices, select
from attention_transfer.writing import write_whole

LARGEST = 3_000_000
"""Bytes of an image with all that is known of it, as text in the file."""

_ROWS = 128  # of a map, that are in memory at once as floats
_ID = "explored"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
</head>
<body>
{elements}</body>
</html>
"""
_ELEMENTS = """<{element} data-explore="{id}"></{element}>
<script type="application/json" id="{id}">{data}</script>
<script type="module">{script}</script>
"""


def html_problems(config: Explore) -> list[str]:
    """Why the file that is asked for can't be written, checked before any work."""
    read = [*config.images, config.data]
    return out_problems(
        config.html, ".html", overwrite=config.overwrite, data=read, models=config.models, names=MODEL_FILES
    )


def file_of(explorer: Explorer, config: Explore) -> None:
    """Write the file that a configuration asks for, and say what is in it.

    Raises:
        UserError: a layer is out of range, or what is asked for does not fit.
    """
    assert config.html is not None
    layers = chosen_layers(explorer, layers_of(config.layers))
    text = html_of(collected(explorer, layers))
    write_whole(expanded(config.html), text)
    shown = "; ".join(f"{net.label}: layers {', '.join(map(str, layers[net.id]))}" for net in explorer.networks)
    show_line(f"{config.html}: {len(explorer.offered)} images, {len(text) / 1e6:.1f} MB ({shown})")


def chosen_layers(explorer: Explorer, layers: Indices) -> dict[str, tuple[int, ...]]:
    """The layers of each network, by its id: those that are asked for, or as many as there is room for.

    Raises:
        UserError: they do not fit into `LARGEST` bytes an image, or there are no such layers.
    """
    pictures = max(len(picture.encoded()[1]) for picture in explorer.offered) * 4 // 3
    sizes = {network.id: _size(network) for network in explorer.networks}
    room = LARGEST - pictures
    if layers is not None:
        found = {net.id: select(layers, net.spec.depth, "layers") for net in explorer.networks}
        needed = sum(len(found[id]) * size for id, size in sizes.items())
        if needed > room:
            raise UserError(
                f"these layers take {needed / 1e6:.1f} MB an image, and there are {room / 1e6:.1f}; choose fewer, or a "
                "smaller image_size"
            )
        return found
    count = room // sum(sizes.values())
    if count < 1:
        raise UserError(
            f"one layer of each network takes {sum(sizes.values()) / 1e6:.1f} MB an image, and there are "
            f"{room / 1e6:.1f}; choose a smaller image_size, or fewer networks"
        )
    return {net.id: _spread(net.spec.depth, min(count, net.spec.depth)) for net in explorer.networks}


def collected(explorer: Explorer, layers: Mapping[str, Sequence[int]]) -> dict[str, Json]:
    """All that the page asks for, by what it asks.

    Args:
        explorer: what there is to look at; uploads are none of it.
        layers: of each network, by its id.
    """
    session = Session(Explorer(explorer.networks, explorer.offered, None))
    networks = [{**described(network), "epochs": None} for network in explorer.networks]
    state = {**session.answer("state", {}).meta, "networks": networks, "causal": False}
    images: dict[str, Json] = {}
    places: dict[str, Json] = {}
    rows: dict[str, Json] = {}
    for picture in explorer.offered:
        shown = session.answer("image", {"image": picture.id})
        images[picture.id] = {"meta": dict(shown.meta), "data": _text(shown.buffers[0])}
        for network in explorer.networks:
            key = f"{network.id}/{picture.id}"
            places[key] = dict(session.answer("place", {"network": network.id, "image": picture.id}).meta)
            for layer in layers[network.id]:
                rows[f"{key}/{layer}"] = _layer(network, picture, layer)
    return {"state": state, "images": images, "place": places, "rows": rows}


def html_of(content: Mapping[str, Json], title: str = "attention-transfer explore") -> str:
    """A page of its own, with its content inside."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return _PAGE.format(policy=policy, title=escape(title), elements=elements_of(content, "main"))


def elements_of(content: Mapping[str, Json], element: Literal["main", "div"] = "div") -> str:
    """The explorer with its content, to stand in a page; nothing in a name ends the element that it stands in.

    Args:
        content: of `collected`.
        element: main where it is the whole page.
    """
    return _ELEMENTS.format(element=element, id=_ID, data=json_in_html(content), script=_script())


def _script() -> str:
    script = page_script().replace("\r\n", "\n")
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("the page's script can't stand in a page; build it anew")
    return script


def json_in_html(content: Mapping[str, Json]) -> str:
    """JSON for a script element, out of which no text in it leads."""
    data = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":  # which JSON has inside text alone
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    return data


def quantised(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Rows (…, N), not negative, in 8 bits.

    Returns:
        The scale of each row, (…), and values, (…, N): `scale * value` is the row.
    """
    scale = rows.max(axis=-1) / 255
    safe = np.where(scale > 0, scale, 1)
    return scale.astype(np.float32), np.rint(rows / safe[..., None]).astype(np.uint8)


def _layer(network: ExploredNetwork, picture: Picture, layer: int) -> Json:
    """All rows of a layer; where no class token stands for the image, the mean query's is the last."""
    call = network.call(picture, layer)
    parts = [call.rows(slice(start, start + _ROWS)) for start in range(0, call.q.shape[-2], _ROWS)]
    if network.query == "mean":
        parts.append(call.query_row("mean"))
    scales, values = zip(*(quantised(_maps(part)) for part in parts), strict=True)
    scale_HQ, values_HQN = np.concatenate(scales, axis=1), np.concatenate(values, axis=1)
    heads, queries, tokens = values_HQN.shape
    return {
        "heads": heads,
        "queries": queries,
        "tokens": tokens,
        "scale": _text(scale_HQ.astype("<f4").tobytes()),
        "data": _text(values_HQN.tobytes()),
    }


@torch.no_grad()
def _maps(call: AttentionCall) -> NDArray[np.float32]:
    """(H, Q, N).

    Raises:
        UserError: they are not finite.
    """
    maps_HQN: NDArray[np.float32] = call.wide_logits().softmax(dim=-1)[0].float().cpu().numpy()
    if not np.isfinite(maps_HQN).all():
        raise UserError("the attention is not finite, so that it can't be shown; the run may have diverged")
    return maps_HQN


def _size(network: ExploredNetwork) -> int:
    """Bytes of a layer as text."""
    queries = network.spec.sequence + (network.query == "mean")
    return network.spec.heads * queries * (network.spec.sequence + 4) * 4 // 3


def _spread(depth: int, count: int) -> tuple[int, ...]:
    """The last of some layers, and others at even distances before it."""
    return tuple(sorted(depth - 1 - i * depth // count for i in range(count)))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
