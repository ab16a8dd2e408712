"""What requests answer, held against `capture`, hand-written attention and worked numbers."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.data import eval_transform, read_image
from attention_transfer.errors import UserError
from attention_transfer.explorer.album import Room, offered_files
from attention_transfer.explorer.answers import Answer
from attention_transfer.explorer.causal import Cancelled
from attention_transfer.explorer.network import ExploredNetwork
from attention_transfer.explorer.session import Explorer, Session
from attention_transfer.vit import capture, rollout
from tests.explorer.conftest import CLASSES, explored


def array(answer: Answer) -> NDArray[np.float32]:
    shape = (answer.meta["heads"], answer.meta["tokens"])
    return np.frombuffer(answer.buffers[0], "<f4").reshape(shape)  # type: ignore[arg-type] # numbers


def seen(network: ExploredNetwork, explorer: Explorer, image: str) -> Tensor:
    picture = next(picture for picture in explorer.offered if picture.id == image)
    return eval_transform(network.spec)(picture.open())[None]


def whole_maps(network: ExploredNetwork, images: Tensor) -> Tensor:
    """(L, H, N, N)."""
    with torch.no_grad(), capture(network.subject.vit) as calls:
        network.subject.vit(images)
    return torch.stack([call.maps()[0] for call in calls])


def test_the_state_says_what_there_is(explorer: Explorer) -> None:
    meta: Any = Session(explorer).answer("state", {}).meta
    assert meta["networks"][0] == {
        "id": "0",
        "name": "network 0",
        "layers": 3,
        "heads": 3,
        "prefix": ["class"],
        "classes": list(CLASSES),
        "epochs": None,
        "grid": [2, 2],
        "query": 0,
    }
    assert meta["images"] == [
        {"id": "0", "name": "ant/a.png", "width": 20, "height": 30, "label": "ant"},
        {"id": "1", "name": "ant/b.png", "width": 8, "height": 8, "label": "ant"},
        {"id": "2", "name": "bee/c.png", "width": 40, "height": 12, "label": "bee"},
    ]
    assert (meta["upload"], meta["causal"]) == (True, True)


def test_numbers_of_classes_are_not_held_against_labels(explorer: Explorer) -> None:
    """A network whose classes have no names may count other things: its class 1 need not be an image's class "1"."""
    first = explorer.networks[0]
    unnamed = replace(first.subject, classes=tuple(map(str, range(len(CLASSES)))), named=False)
    digit = replace(explorer.offered[0], label="1")
    session = Session(Explorer([ExploredNetwork("0", unnamed, "unnamed", first.epochs)], [digit]))
    state: Any = session.answer("state", {}).meta
    assert state["networks"][0]["classes"] is None
    place: Any = session.answer("place", {"network": "0", "image": "0"}).meta
    assert place["loss"] is None
    assert "1" in {name for name, _ in place["prediction"]}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("query", [0, 3])
def test_rows_are_those_of_capture(explorer: Explorer, layer: int, query: int) -> None:
    network = explorer.networks[1]
    answer = Session(explorer).answer("rows", {"network": "1", "image": "2", "layer": layer, "query": query})
    expected = whole_maps(network, seen(network, explorer, "2"))[layer, :, query]
    np.testing.assert_allclose(array(answer), expected, atol=1e-6)


def test_rollout_is_that_of_the_library(explorer: Explorer) -> None:
    network = explorer.networks[0]
    answer = Session(explorer).answer("rows", {"network": "0", "image": "0", "layer": "rollout", "query": 0})
    expected = rollout(network.subject.vit, seen(network, explorer, "0"), query="class")[0].flatten()
    np.testing.assert_allclose(array(answer)[0], [0, *(expected / expected.sum())], atol=1e-6)


def test_mass_is_the_mean_over_queries(explorer: Explorer) -> None:
    network = explorer.networks[0]
    answer = Session(explorer).answer("mass", {"network": "0", "image": "0", "layer": 1})
    expected = whole_maps(network, seen(network, explorer, "0"))[1].mean(dim=1)
    np.testing.assert_allclose(array(answer), expected, atol=1e-6)
    assert answer.meta["prefix"] == pytest.approx([float(expected[:, 0].mean())], abs=1e-6)


def test_of_many_queries_some_are_taken(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_transfer.explorer.network._QUERIES", 3)
    network = explorer.networks[0]
    answer = Session(explorer).answer("mass", {"network": "0", "image": "0", "layer": 1})
    expected = whole_maps(network, seen(network, explorer, "0"))[1, :, [0, 2, 4]].mean(dim=1)
    np.testing.assert_allclose(array(answer), expected, atol=1e-6)


def test_sinks_are_patches_with_ten_times_their_share(networks: Sequence[ExploredNetwork]) -> None:
    got = torch.full((1, 41), 0.01)
    got[0, [0, 7, 9]] = torch.tensor([0.9, 0.3, 0.4])
    network = networks[0]
    object.__setattr__(network, "spec", type(network.spec)(**{**vars(network.spec), "grid": (4, 10)}))
    assert dict(network.sinks(got)) == pytest.approx({9: 0.4, 7: 0.3})
    assert network.sinks(got)[0][0] == 9  # most first


def test_the_place_has_box_prediction_and_loss(explorer: Explorer) -> None:
    network = explorer.networks[0]
    meta = Session(explorer).answer("place", {"network": "0", "image": "2"}).meta
    shares = network.subject.vit(seen(network, explorer, "2")).softmax(dim=-1)[0].detach()
    best = shares.argsort(descending=True).tolist()
    assert (meta["rows"], meta["columns"], meta["box"], meta["prefix"]) == (2, 2, [0.0, 0.0, 40.0, 12.0], 1)
    assert [name for name, _ in meta["prediction"]] == [CLASSES[c] for c in best]  # type: ignore[union-attr, misc]
    assert meta["loss"] == pytest.approx(-float(shares[CLASSES.index("bee")].log()), abs=1e-5)


def test_an_image_comes_as_it_is_and_large_ones_smaller(explorer: Explorer, tmp_path: Path) -> None:
    answer = Session(explorer).answer("image", {"image": "0"})
    shown = Image.open(BytesIO(answer.buffers[0]))
    assert (answer.meta, shown.size, shown.format) == (
        {"type": "image/png", "width": 20, "height": 30},
        (20, 30),
        "PNG",
    )
    session = Session(explorer)
    id = session.upload("large", encoded(Image.new("RGB", (3200, 100)))).meta["id"]
    answer = session.answer("image", {"image": id})
    assert (answer.meta["width"], Image.open(BytesIO(answer.buffers[0])).size) == (3200, (1600, 50))
    answer = session.answer("image", {"image": id, "side": 160})
    assert (answer.meta["width"], Image.open(BytesIO(answer.buffers[0])).size) == (3200, (160, 5))


def test_pictures_are_turned_upright(networks: Sequence[ExploredNetwork], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(tmp_path / "turned.jpg", exif=exif)
    (picture,), _ = offered_files([str(tmp_path / "turned.jpg")], None)
    assert picture.size == (10, 30) == picture.open().size


def test_one_forward_serves_all_layers_until_others_need_the_room(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, forwards = explorer.networks[0], []
    network.subject.vit.register_forward_hook(lambda *_: forwards.append(1))
    session = Session(explorer)

    def ask(image: str, layer: int) -> int:
        session.answer("rows", {"network": "0", "image": image, "layer": layer, "query": 2})
        return len(forwards)

    assert [ask("0", 2), ask("0", 0), ask("0", 1), ask("1", 1)] == [1, 1, 1, 2]
    one = network.call(explorer.offered[0], 0)
    network._calls.most = 3 * (one.q.nbytes + one.k.nbytes)  # room for the layers of one image
    assert [ask("2", 0), ask("0", 0), ask("0", 2), ask("2", 1)] == [3, 4, 4, 5]


def test_a_layer_stays_even_where_there_is_room_for_one(explorer: Explorer) -> None:
    explorer.networks[0]._calls.most = 1
    for layer in (1, 0, 2):
        answer = Session(explorer).answer("rows", {"network": "0", "image": "0", "layer": layer, "query": 0})
        expected = whole_maps(explorer.networks[0], seen(explorer.networks[0], explorer, "0"))[layer, :, 0]
        np.testing.assert_allclose(array(answer), expected, atol=1e-6)


def test_several_threads_get_what_one_gets(explorer: Explorer) -> None:
    asked = [(net, image, layer) for net in "01" for image in "012" for layer in range(3)]
    found: dict[tuple[str, str, int], NDArray[np.float32]] = {}
    session = Session(explorer)

    def ask(net: str, image: str, layer: int) -> None:
        arguments = {"network": net, "image": image, "layer": layer, "query": 1}
        found[net, image, layer] = array(session.answer("rows", arguments))

    threads = [threading.Thread(target=ask, args=each) for each in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for net, image, layer in asked:
        network = explorer.networks[int(net)]
        expected = whole_maps(network, seen(network, explorer, image))[layer, :, 1]
        np.testing.assert_allclose(found[net, image, layer], expected, atol=1e-6)


def with_maps(vit: nn.Module, images: Tensor, maps: dict[int, Callable[[Tensor], Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits and all maps, by timm's unfused code, with some layers' maps replaced as soon as they are there."""
    plain: Any = copy.deepcopy(vit)
    seen: list[Tensor] = []

    def replaced(layer: int) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, args: tuple[Tensor], _output: Tensor) -> Tensor:
            seen.append(maps[layer](args[0]) if layer in maps else args[0])
            return seen[-1]

        return hook

    for layer, block in enumerate(plain.blocks):
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(replaced(layer))
    with torch.no_grad():
        logits = plain(images)
    return logits, torch.cat(seen)


@pytest.mark.parametrize(("layer", "head"), [(1, None), (0, 2), ("all", None), ("all", 1)])
def test_the_causal_answer_is_that_of_maps_replaced_by_hand(
    explorer: Explorer, layer: int | str, head: int | None
) -> None:
    student, teacher = explorer.networks
    images = seen(student, explorer, "0")
    theirs = whole_maps(teacher, images)
    layers = range(3) if layer == "all" else [int(layer)]

    def replace(n: int, own: Tensor) -> Tensor:
        taken = own.clone()
        taken[:, slice(None) if head is None else head] = theirs[n] if head is None else theirs[n, head]
        return taken

    before, own = with_maps(student.subject.vit, images, {})
    after, changed = with_maps(
        student.subject.vit,
        images,
        {n: lambda maps, n=n: replace(n, maps) for n in layers},  # type: ignore[misc]
    )
    arguments = {"student": "0", "teacher": "1", "image": "0", "layer": layer, "head": head}
    meta: Any = Session(explorer).answer("causal", arguments).meta
    p, q = before[0].softmax(-1), after[0].softmax(-1)
    assert dict(meta["before"]) == pytest.approx(dict(zip(CLASSES, p.tolist(), strict=True)), abs=1e-5)
    assert dict(meta["after"]) == pytest.approx(dict(zip(CLASSES, q.tolist(), strict=True)), abs=1e-5)
    assert meta["change"]["prediction"] == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-5)
    rows = [np.mean([jensenshannon(own[n, h, 0], changed[n, h, 0]) ** 2 for h in range(3)]) for n in range(3)]
    assert meta["change"]["layers"] == pytest.approx(rows, abs=1e-5)
    assert meta["change"]["prediction"] > 1e-4


def test_heads_are_sorted_by_what_each_changes_alone(explorer: Explorer) -> None:
    session = Session(explorer)
    pair = {"student": "0", "teacher": "1", "image": "1"}
    found: Any = session.answer("heads", pair).meta["heads"]
    assert len(found) == 9
    assert [each["change"] for each in found] == sorted((each["change"] for each in found), reverse=True)
    for each in found:
        single: Any = session.answer("causal", {**pair, "layer": each["layer"], "head": each["head"]}).meta
        assert each["change"] == pytest.approx(single["change"]["prediction"], abs=1e-6)


def test_what_nobody_waits_for_stops(explorer: Explorer) -> None:
    cancelled = threading.Event()
    cancelled.set()
    asked: dict[str, dict[str, object]] = {
        "heads": {"student": "0", "teacher": "1", "image": "1"},
        "drift": {"a": "0", "b": "1"},
        "box": {"network": "0", "images": ["0", "1"], "box": [0, 0, 4, 4]},
    }
    for name, arguments in asked.items():
        with pytest.raises(Cancelled):
            Session(explorer).answer(name, arguments, cancelled)


def test_pairs_that_do_not_fit_are_refused_in_a_sentence(explorer: Explorer, tiny_vit: Callable[..., Any]) -> None:
    others = [explored("2", tiny_vit(img_size=16)), explored("3", tiny_vit(num_heads=4))]
    session = Session(Explorer([*explorer.networks, *others], explorer.offered))
    for id, reason in {"2": "unlike patch grids", "3": "has 3 heads and network 3 4"}.items():
        with pytest.raises(UserError, match=reason):
            session.answer("causal", {"student": "0", "teacher": id, "image": "0", "layer": 0})
        with pytest.raises(UserError, match=reason):
            session.answer("drift", {"a": "0", "b": id})


def test_a_box_holds_the_mass_of_the_patches_below_it(explorer: Explorer) -> None:
    network = explorer.networks[0]
    maps = whole_maps(network, seen(network, explorer, "0"))
    # The image has 20×30 pixels and 2×2 patches: the box is half of the upper left and a quarter of the lower left.
    found: Any = Session(explorer).answer("box", {"network": "0", "images": ["0"], "box": [5, 0, 10, 22.5]}).meta
    expected = maps[:, :, 0, 1] * 0.5 + maps[:, :, 0, 3] * 0.25
    assert [each["share"] for each in found["heads"]] == sorted((s["share"] for s in found["heads"]), reverse=True)
    for each in found["heads"]:
        assert each["share"] == pytest.approx(float(expected[each["layer"], each["head"]]), abs=1e-6)
    whole: Any = (
        Session(explorer).answer("box", {"network": "0", "images": ["0", "2"], "box": [0, 0, 20, 30], "layer": 1}).meta
    )
    both = 1 - (maps[1, :, 0, 0] + whole_maps(network, seen(network, explorer, "2"))[1, :, 0, 0]) / 2
    assert {each["head"]: each["share"] for each in whole["heads"]} == pytest.approx(dict(enumerate(both.tolist())))


def test_drift_sorts_images_and_says_who_is_right(explorer: Explorer) -> None:
    a, b = explorer.networks
    meta: Any = Session(explorer).answer("drift", {"a": "0", "b": "1"}).meta
    assert [row["drift"] for row in meta["images"]] == sorted((r["drift"] for r in meta["images"]), reverse=True)
    for row in meta["images"]:
        one, other = (whole_maps(net, seen(net, explorer, row["image"]))[-1, :, 0] for net in (a, b))
        assert row["drift"] == pytest.approx(
            np.mean([jensenshannon(p, q) ** 2 for p, q in zip(one, other, strict=True)]), abs=1e-5
        )
        label = {"0": "ant", "1": "ant", "2": "bee"}[row["image"]]
        right = [CLASSES[int(net.subject.vit(seen(net, explorer, row["image"])).argmax())] == label for net in (a, b)]
        assert row["right"] == right
    few: Any = Session(explorer).answer("drift", {"a": "0", "b": "1", "limit": 2}).meta
    assert (len(few["images"]), few["of"]) == (2, 3)


def test_a_network_without_class_token_and_classes_answers_too(
    tiny_vit: Callable[..., Any], explorer: Explorer
) -> None:
    bare = {"class_token": False, "global_pool": "avg", "num_classes": 0}
    networks = [explored(str(i), tiny_vit(i, **bare)) for i in range(2)]
    session = Session(Explorer(networks, explorer.offered))
    state: Any = session.answer("state", {}).meta
    assert (state["networks"][0]["query"], state["networks"][0]["prefix"]) == ("mean", [])
    place = session.answer("place", {"network": "0", "image": "0"}).meta
    assert (place["prediction"], place["loss"]) == (None, None)
    found: Any = session.answer("causal", {"student": "0", "teacher": "1", "image": "0", "layer": 0}).meta
    assert found["before"] is found["after"] is found["change"]["prediction"] is None
    assert found["change"]["layers"][0] > 0
    assert session.answer("heads", {"student": "0", "teacher": "1", "image": "0"}).meta["heads"]
    mean = array(session.answer("rows", {"network": "0", "image": "0", "layer": 0, "query": "mean"}))
    with torch.no_grad(), capture(networks[0].subject.vit, layers=[0]) as calls:
        networks[0].subject.vit(seen(networks[0], explorer, "0"))
    np.testing.assert_allclose(mean, F.softmax(calls[0].logits()[0].mean(dim=1), dim=-1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("rowz", {}, "did you mean 'rows'"),
        ("_network", {}, "there is no request"),
        ("image", {"image": "../../etc/passwd"}, "there is no image"),
        ("image", {}, "image is missing"),
        ("image", {"image": ["0"]}, "image is"),
        ("image", {"image": "0", "side": 9999}, "side is 9999; choose a number of pixels from 1 to 1600"),
        ("place", {"network": "9", "image": "0"}, "there is no network '9'; choose one of: 0, 1"),
        ("place", {"network": "0", "image": "0", "epoch": 3}, "epoch 3 are not kept; there are: none"),
        ("rows", {"network": "0", "image": "0", "layer": 3, "query": 0}, "has no layer 3; choose from 0 to 2"),
        ("rows", {"network": "0", "image": "0", "layer": -1, "query": 0}, "has no layer -1"),
        ("rows", {"network": "0", "image": "0", "layer": 0, "query": 99}, "there is no token 99"),
        ("rows", {"network": "0", "image": "0", "layer": "last", "query": 0}, "layer is"),
        ("rows", {"network": "0", "image": "0", "layer": 0, "query": 0, "x": 1}, "there is no argument 'x'"),
        ("causal", {"student": "0", "teacher": "1", "image": "0", "layer": 0, "head": 7}, "has no head 7"),
        ("box", {"network": "0", "images": [], "box": [0, 0, 1, 1]}, "images is empty"),
        ("box", {"network": "0", "images": ["0"], "box": [0, 0, 1]}, "give left, top, right and bottom"),
        ("box", {"network": "0", "images": ["0"], "box": [0, 0, float("nan"), 1]}, "give left, top, right and bottom"),
        ("drift", {"a": "0", "b": "1", "limit": 0}, "limit is 0"),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(
    explorer: Explorer, name: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Session(explorer).answer(name, arguments)


def test_attention_that_is_not_finite_is_said(explorer: Explorer) -> None:
    with torch.no_grad():
        explorer.networks[0].subject.vit.blocks[0].attn.qkv.weight.fill_(float("nan"))  # type: ignore[index, union-attr]
    with pytest.raises(UserError, match="not finite"):
        Session(explorer).answer("rows", {"network": "0", "image": "0", "layer": 0, "query": 0})


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def test_uploads_are_seen_by_their_session_alone(explorer: Explorer) -> None:
    one, other = Session(explorer), Session(explorer)
    id: Any = one.upload("mine.png", encoded(Image.new("RGB", (9, 7), "red"))).meta["id"]
    assert one.answer("image", {"image": id}).meta["width"] == 9
    assert array(one.answer("rows", {"network": "0", "image": id, "layer": 0, "query": 0})).shape == (3, 5)
    state: Any = one.answer("state", {}).meta
    assert state["images"][-1] == {"id": id, "name": "mine.png", "width": 9, "height": 7, "label": None}
    asked = {"image": {"image": id}, "rows": {"network": "0", "image": id, "layer": 0, "query": 0}}
    for name, arguments in asked.items():
        with pytest.raises(UserError, match="there is no image"):
            other.answer(name, arguments)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no image", "is not an image that can be read"),
        (b"", "is empty"),
        (bytes(20_000_001), "more than 20 MB"),
        (encoded(Image.new("1", (10_000, 5_001))), "more than 50 million pixels"),
        (encoded(Image.new("L", (4, 4)), "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 9)]), "several"),
        (encoded(Image.fromarray(np.full((4, 4), 9, np.uint16))), "almost black"),
        (encoded(Image.new("RGB", (50, 50)))[:60], "damaged"),
    ],
    ids=["text", "empty", "bytes", "pixels", "animation", "dark", "cut off"],
)
def test_uploads_that_are_no_images_are_refused(explorer: Explorer, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Session(explorer).upload("x.png", data)


def test_uploads_have_bounds(explorer: Explorer) -> None:
    data = encoded(Image.new("RGB", (4, 4)))
    tight = Explorer(explorer.networks, explorer.offered, Room(2 * len(data)))
    one, other = Session(tight), Session(tight)
    one.upload("a", data)
    other.upload("b", data)
    with pytest.raises(UserError, match="no room for more uploads"):
        one.upload("c", data)
    other.close()
    one.upload("c", data)
    many = Session(explorer)
    for _ in range(20):
        many.upload("x", data)
    with pytest.raises(UserError, match="20 images are uploaded already"):
        many.upload("x", data)


def test_nothing_is_uploaded_where_there_is_no_room_for_it(explorer: Explorer) -> None:
    session = Session(Explorer(explorer.networks, explorer.offered, None))
    assert session.answer("state", {}).meta["upload"] is False
    with pytest.raises(UserError, match="nothing can be uploaded here"):
        session.upload("x", encoded(Image.new("RGB", (4, 4))))


def test_answers_are_framed(explorer: Explorer) -> None:
    body = Answer({"a": 1}, (b"xy", b"z")).framed()
    length = int.from_bytes(body[:4], "little")
    assert json.loads(body[4 : 4 + length]) == {"a": 1, "buffers": [2, 1]}
    assert body[4 + length :] == b"xyz"


def test_more_than_four_networks_are_refused(explorer: Explorer) -> None:
    with pytest.raises(UserError, match="5 networks are named; name 1 to 4"):
        Explorer([explorer.networks[0]] * 5, explorer.offered)


def test_a_picture_reads_as_the_library_reads_it(explorer: Explorer, pictures: Path) -> None:
    assert explorer.offered[0].open().tobytes() == read_image(pictures / "ant/a.png").tobytes()
