"""The verb `show`: where networks look, as one figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from attention_transfer import UserError, relevance, rollout, show
from attention_transfer.config.show import SUFFIXES, Show, is_image
from attention_transfer.data.finder import SUFFIXES as FOUND
from attention_transfer.evaluation import seen
from attention_transfer.evaluation.attention_panels import Shown, maps_of
from attention_transfer.evaluation.subjects import load_subject
from attention_transfer.parser import parse
from attention_transfer.vit import describe, load_vit, save_vit

Maps = Callable[[nn.Module, Tensor], list[Tensor]]


@pytest.fixture
def models(tiny_vit: Callable[..., Any], tmp_path: Path) -> list[str]:
    """Three small networks: two alike, one with registers, other patches and no class token."""
    scene = {"img_size": 64, "patch_size": 16, "in_chans": 3}
    save_vit(tiny_vit(1, **scene), tmp_path / "one")
    save_vit(tiny_vit(2, **scene), tmp_path / "two")
    save_vit(
        tiny_vit(3, **{**scene, "patch_size": 8}, class_token=False, reg_tokens=2, global_pool="avg"),
        tmp_path / "other",
    )
    return [str(tmp_path / name) for name in ("one", "two", "other")]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """A photograph that is not square, of which the sides are cropped."""
    path = tmp_path / "photo.png"
    Image.effect_noise((200, 120), 60).convert("RGB").save(path)
    return str(path)


def looked_at(model: str, photo: str, **settings: Any) -> Shown:
    subject = load_subject(model, None, "cpu")
    return maps_of(subject, Image.open(photo), Show([model], [photo], **settings))


def drawn(figure: Figure) -> list[NDArray[np.uint8]]:
    """The pixels of each panel, in order."""
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


def bars(figure: Figure) -> list[float]:
    """The ends of each colour bar, one after the other."""
    return [end for axis in figure.axes if not axis.images for end in axis.get_ylim()]


def test_maps_are_those_of_the_network(models: list[str], photo: str, unfused_maps: Maps) -> None:
    model = load_vit(models[0]).eval()
    pixels, placement = seen(describe(model), Image.open(photo))
    maps = [one[0] for one in unfused_maps(model, pixels)]
    uniform = placement.tokens

    def grid(row_N: Tensor) -> NDArray[np.float32]:
        found: NDArray[np.float32] = row_N[1:].reshape(4, 4).numpy()
        return found * uniform

    (mean,) = looked_at(models[0], photo).maps.values()
    np.testing.assert_allclose(mean, grid(maps[-1][:, 0].mean(dim=0)), rtol=1e-4)
    (largest,) = looked_at(models[0], photo, heads="max", layers=[0]).maps.values()
    np.testing.assert_allclose(largest, grid(maps[0][:, 0].amax(dim=0)), rtol=1e-4)
    two = looked_at(models[0], photo, heads="0,2", layers="all", query="1,3").maps
    assert list(two) == [(f"layer {layer}", f"head {head}") for layer in range(3) for head in (0, 2)]
    for (layer, head), found in two.items():
        row_N = maps[int(layer[-1])][int(head[-1]), placement.token(1, 3)]
        np.testing.assert_allclose(found, grid(row_N), rtol=1e-4)
    (rolled,) = looked_at(models[0], photo, source="rollout").maps.values()
    np.testing.assert_allclose(rolled, rollout(model, pixels)[0].numpy() * uniform, rtol=1e-4)
    (relevant,) = looked_at(models[0], photo, source="relevance", target=3).maps.values()
    np.testing.assert_allclose(relevant, relevance(model, pixels, 3)[0].numpy(), rtol=1e-4, atol=1e-7)


def test_a_point_is_the_patch_that_lies_there(models: list[str], photo: str) -> None:
    """Patches of unlike networks that lie at one place of the image."""
    for model in (models[0], models[2]):
        found = looked_at(model, photo, query="100,70px")
        patch = found.placement.patch_at(100, 70)
        assert patch is not None
        assert found.query == found.placement.patch_box(*patch)
        named = looked_at(model, photo, query=f"{patch[0]},{patch[1]}")
        assert all(np.array_equal(found.maps[key], named.maps[key]) for key in named.maps)


def test_what_was_cropped_is_shaded_and_the_rest_has_the_colours_of_its_patches(models: list[str], photo: str) -> None:
    figure = show(models[:1], [photo])
    alone, over = drawn(figure)
    placement = looked_at(models[0], photo).placement.resized(over.shape[1::-1])
    unseen = np.isnan(placement.on_image(np.zeros((4, 4), np.float32)))
    assert 0.2 < unseen.mean() < 0.7
    picture = np.asarray(Image.open(photo).resize(over.shape[1::-1], Image.Resampling.NEAREST)).astype(float)
    np.testing.assert_allclose(alone[~unseen], picture[~unseen])
    assert abs(alone[unseen].mean() - 235) < abs(picture[unseen].mean() - 235) / 2
    colourless = np.ptp(over.astype(int), axis=-1) == 0
    assert colourless[unseen].all()
    flat = drawn(show(models[:1], [photo], overlay=False))[1]
    for row in range(4):
        for column in range(4):
            inside = placement.on_image(np.eye(16, dtype=np.float32)[row * 4 + column].reshape(4, 4)) == 1
            assert len(np.unique(flat[inside], axis=0)) == 1


def test_networks_share_a_scale_and_differences_have_one_around_0(models: list[str], photo: str) -> None:
    maps = [next(iter(looked_at(model, photo).maps.values())) for model in models[:2]]
    figure = show(models[:2], [photo], difference=True, clip=1)
    largest, widest = max(one.max() for one in maps), np.abs(maps[1] - maps[0]).max()
    assert bars(figure) == pytest.approx([0, largest, -widest, widest])
    assert len(drawn(figure)) == 4
    own = bars(show(models[:2], [photo], scale="network", clip=1))
    assert own == pytest.approx([0, maps[0].max(), 0, maps[1].max()])
    flat = drawn(show(models[:1], [photo], scale="map", clip=1, overlay=False))[1]
    assert (flat == [252, 255, 164]).all(axis=-1).any(), "the last colour of inferno is reached"


def test_unlike_networks_stand_side_by_side(models: list[str], photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    figure = show([models[0], models[2]], [photo, photo])
    assert len(drawn(figure)) == 6
    assert "other has no class token: the attention is that of the patches' mean query" in capsys.readouterr().err
    sheet = show([models[0], models[2]], [photo], layers="all", heads="each")
    assert len(drawn(sheet)) == 2 * (1 + 9)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_is_written_by_its_suffix(models: list[str], photo: str, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"figure.{suffix}"
    show(models[:1], [photo], out=str(out), mass=0.6)
    start = out.read_bytes()[:200]
    assert {"png": b"PNG", "svg": b"<svg", "pdf": b"%PDF"}[suffix] in out.read_bytes()[:1000], start
    with pytest.raises(UserError, match="exists; choose another name or replace it with --overwrite"):
        show(models[:1], [photo], out=str(out))
    show(models[:1], [photo], out=str(out), overwrite=True)


def test_outlines_are_those_of_the_set_and_of_the_mask(models: list[str], photo: str, tmp_path: Path) -> None:
    mask = np.zeros((120, 200), np.uint8)
    mask[30:90, 50:150] = 1
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "photo.png")
    figure = show(models[:1], [photo], mass=0.6, masks=str(tmp_path / "masks"))
    image, panel = (axis for axis in figure.axes if axis.images)
    (map_RC,) = looked_at(models[0], photo).maps.values()
    order = np.argsort(-map_RC.ravel())
    count = int((np.cumsum(map_RC.ravel()[order]) < 0.6 * map_RC.sum()).sum()) + 1
    chosen = np.zeros(16, bool)
    chosen[order[:count]] = True
    padded = np.pad(chosen.reshape(4, 4), 1)
    edges = int((padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum())
    lines = [len(part.get_segments()) for part in panel.collections if hasattr(part, "get_segments")]
    assert lines == [edges, edges], "black, and white on it"
    for axis in (image, panel):
        paths = [np.asarray(path.vertices) for part in axis.collections for path in part.get_paths()]
        paths = [path for path in paths if len(path) > 100]
        assert paths, "the mask's outline"
        np.testing.assert_allclose([paths[0].min(axis=0), paths[0].max(axis=0)], [[50, 30], [150, 90]], atol=0.6)


def test_words_are_told_apart(models: list[str], photo: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "deep"
    folder.mkdir(parents=True)
    Image.open(photo).save(folder / "a.PNG")
    _, config = parse(["show", photo, models[0], "timm/x", str(folder.parent), "*.jpg", "gone.jpeg", "--heads=0,1"])
    assert isinstance(config, Show)
    assert config.models == [models[0], "timm/x"]
    assert config.images == [photo, str(folder.parent), "*.jpg", "gone.jpeg"]
    assert config.out == "attention.png"
    figures = Path(models[0]) / "figures"
    figures.mkdir()
    Image.open(photo).save(figures / "attention.png")
    assert not is_image(models[0]), "a model's own pictures are no images to look at"
    Image.open(photo).save(Path(models[0]) / "a.png")
    with pytest.raises(UserError, match=r'one holds a model and images; name the images by a pattern, ".*one/\*\.png"'):
        parse(["show", models[0], photo])
    assert {*SUFFIXES} == {*FOUND}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query": "4,0"}, r"query 4,0 lies outside of the 4×4 patches of .*one; choose a row from 0 to 3"),
        ({"query": "3,60px"}, r"query 3,60px lies outside of what .*one saw of the image"),
        ({"query": "clas"}, "query 'clas' is no token of .*; did you mean 'class'"),
        ({"models": [2], "query": "class"}, "other has no class token; leave query out"),
        ({"layers": [5]}, r"one: layers \[5\] do not exist; choose from -3 to 2"),
        ({"layers": 0}, "layers=0 asks for the last 0"),
        ({"images": ["MANY"], "layers": "all"}, "makes 804 panels, more than 800"),
        ({"heads": "7"}, r"heads \[7\] do not exist; choose from -3 to 2"),
        ({"heads": "most"}, "heads is 'most'; choose mean, max or each"),
        ({"source": "rollout", "layers": 2}, "layers has no effect on rollout"),
        ({"target": 3}, "target has no effect on attention"),
        ({"source": "relevance", "target": 9}, "target is 9, but the model has 5 classes"),
        ({"source": "relevance", "target": "cat"}, "target 'cat' is no class of"),
        ({"mass": 0.0, "clip": 2.0}, "mass is 0.0; give a share above 0 and at most 1\nclip is 2.0"),
        ({"difference": True}, "a difference needs two networks"),
        ({"models": [0, 2], "difference": True}, r"have unlike patches \(8×8 and 4×4\)"),
        ({"models": [0, 0]}, "is named twice"),
        ({"labels": ["a", "b"]}, "there are 2 labels and 1 networks"),
        ({"out": "x.jpg"}, r"x\.jpg does not end in \.png or \.svg or \.pdf"),
        ({"images": ["gone.png"]}, r"there is no image gone\.png"),
        ({"images": ["TEXT"]}, r"text\.png is not an image that can be read"),
        ({"images": ["FAINT"]}, r"faint\.png has 16 bits, but uses 99 of 65,535"),
        ({"masks": "EMPTY"}, r"photo\.png has no mask of the name photo in"),
    ],
)
def test_each_mistake_has_its_sentence(
    models: list[str], photo: str, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "text.png").write_text("text")
    Image.fromarray(np.full((8, 8), 99, np.uint16)).save(tmp_path / "faint.png")
    (tmp_path / "empty").mkdir()
    places = {name.upper(): str(tmp_path / file) for name, file in (("text", "text.png"), ("faint", "faint.png"))}
    given: dict[str, Any] = {"images": [photo], **settings}
    if given["images"] == ["MANY"]:
        given["images"] = [photo] * 201
    given["images"] = [places.get(name, name) for name in given["images"]]
    if "masks" in given:
        given["masks"] = str(tmp_path / "empty")
    with pytest.raises(UserError, match=message):
        show([models[i] for i in given.pop("models", [0])], given.pop("images"), **given)


def test_attention_that_is_not_finite_is_refused(tiny_vit: Callable[..., Any], photo: str, tmp_path: Path) -> None:
    model = tiny_vit(in_chans=3)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.fill_(1e30)
    save_vit(model, tmp_path / "broken")
    with pytest.raises(UserError, match=r"the attention of .*broken is not finite"):
        show([str(tmp_path / "broken")], [photo])


def test_strips_are_drawn_or_refused_in_a_sentence(models: list[str], tmp_path: Path) -> None:
    Image.new("L", (4000, 10), 99).save(tmp_path / "wide.png")
    Image.new("L", (10, 4000), 99).save(tmp_path / "high.png")
    show(models[:1], [str(tmp_path / "wide.png")], out=str(tmp_path / "wide.pdf"))
    with pytest.raises(UserError, match=r"the figure would be 1,2\d\d inches high, more than 200"):
        show(models[:1], [str(tmp_path / "high.png")])


def test_animations_and_16_bits_are_images(models: list[str], tmp_path: Path) -> None:
    frames = [Image.new("RGB", (90, 60), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    ramp = np.linspace(0, 65535, 90 * 60).reshape(60, 90).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    moving, deep = (drawn(show(models[:1], [str(tmp_path / f"{name}.png")]))[0] for name in ("moving", "deep"))
    middle = moving[moving.shape[0] // 2, moving.shape[1] // 2]
    assert middle.tolist() == [255, 0, 0], "the first picture"
    assert np.ptp(deep) > 200, "not cut to white"
