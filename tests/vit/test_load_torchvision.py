"""Vision transformers of torchvision: by name, and the folders and files that they are kept in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit import describe, labels_of, load_vit, save_vit, student_from, student_like

SIZE = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
NAMES = ["cat", "dog", "owl"]


def vit(seed: int = 0, **overrides: Any) -> Any:
    """A small VisionTransformer whose weights are spread, so that a wrong one would be seen."""
    torch.manual_seed(seed)
    model = torchvision.models.VisionTransformer(**{**SIZE, "num_classes": 3, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model.eval()


def pixels(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(7))


def features(model: Any, images: Tensor) -> Tensor:
    """Tokens after the encoder's norm."""
    tokens = model._process_input(images)
    found: Tensor = model.encoder(torch.cat([model.class_token.expand(len(images), -1, -1), tokens], dim=1))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """Writes a model with class names, and names its folder."""

    def write(model: nn.Module, name: str = "model") -> str:
        save_vit(model, tmp_path / name, labels=NAMES)
        return str(tmp_path / name)

    return write


def test_a_saved_model_comes_back_with_equal_logits(folder: Callable[..., str]) -> None:
    source = vit()
    path = folder(source)
    loaded = load_vit(path)
    assert torch.equal(loaded(pixels()), source(pixels()))
    assert labels_of(loaded) == NAMES
    assert not loaded.training
    spec = describe(loaded)
    assert (spec.library, spec.depth, spec.heads, spec.width, spec.classes) == ("torchvision", 2, 2, 32, 3)
    assert (spec.image_size, spec.grid, spec.tokens.prefix) == ((32, 32), (4, 4), ("class",))
    assert spec == describe(source)
    assert sorted(file.name for file in Path(path).iterdir()) == ["config.json", "model.safetensors"]


def test_the_folder_of_a_run_gives_its_model(folder: Callable[..., str], tmp_path: Path) -> None:
    source = vit()
    folder(source)
    assert torch.equal(load_vit(str(tmp_path))(pixels()), source(pixels()))


def test_without_pretrained_only_the_shape_is_taken(folder: Callable[..., str]) -> None:
    source = vit()
    path = folder(source)
    (Path(path) / "model.safetensors").unlink()
    loaded = load_vit(path, pretrained=False)
    assert describe(loaded) == describe(source)
    assert not torch.allclose(features(loaded, pixels()), features(source, pixels()))


def test_a_head_may_be_left_out_or_replaced(folder: Callable[..., str]) -> None:
    source = vit()
    path = folder(source)
    for classes, width in ((0, 32), (7, 7)):
        loaded = load_vit(path, num_classes=classes)
        assert loaded(pixels()).shape == (2, width)
        assert torch.equal(features(loaded, pixels()), features(source, pixels()))
        assert describe(loaded).classes == classes
        assert labels_of(loaded) is None


def test_the_number_of_classes_that_it_has_keeps_the_head(folder: Callable[..., str]) -> None:
    source = vit()
    loaded = load_vit(folder(source), num_classes=3)
    assert torch.equal(loaded(pixels()), source(pixels()))
    assert labels_of(loaded) == NAMES


def test_a_model_without_a_head_is_saved_and_given_one(folder: Callable[..., str], tmp_path: Path) -> None:
    bare = load_vit(folder(vit()), num_classes=0)
    save_vit(bare, tmp_path / "bare")
    again = load_vit(str(tmp_path / "bare"))
    assert torch.equal(again(pixels()), bare(pixels()))
    assert describe(again).classes == 0
    assert load_vit(str(tmp_path / "bare"), num_classes=4)(pixels()).shape == (2, 4)


def test_class_names_survive_being_saved_again(folder: Callable[..., str], tmp_path: Path) -> None:
    save_vit(load_vit(folder(vit())), tmp_path / "again")
    assert labels_of(load_vit(str(tmp_path / "again"))) == NAMES


@pytest.mark.parametrize("size", [64, 16, (48, 48)], ids=str)
def test_position_embeddings_are_resampled_to_another_image_size(
    size: Any, folder: Callable[..., str], tmp_path: Path
) -> None:
    source = vit()
    loaded: Any = load_vit(folder(source), image_size=size)
    side = size if isinstance(size, int) else size[0]
    assert (describe(loaded).image_size, describe(loaded).grid) == ((side, side), (side // 8, side // 8))
    expected = resample_abs_pos_embed(source.encoder.pos_embedding, [side // 8, side // 8])
    torch.testing.assert_close(loaded.encoder.pos_embedding, expected)
    assert loaded(pixels(side)).shape == (2, 3)
    theirs = {key: value for key, value in source.state_dict().items() if "pos_embedding" not in key}
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in theirs.items())
    assert loaded.encoder.pos_embedding.requires_grad
    save_vit(loaded, tmp_path / "resized")
    assert torch.equal(load_vit(str(tmp_path / "resized"))(pixels(side)), loaded(pixels(side)))


def test_its_own_image_size_changes_nothing(folder: Callable[..., str]) -> None:
    source = vit()
    assert torch.equal(load_vit(folder(source), image_size=(32, 32))(pixels()), source(pixels()))


@pytest.mark.parametrize("options", [{"patch_size": 4}, {"image_size": (32, 64)}], ids=str)
def test_other_patches_and_images_that_are_not_square_are_refused(
    options: dict[str, Any], folder: Callable[..., str]
) -> None:
    sentence = "^a torchvision model takes neither another patch size nor images that are not square$"
    with pytest.raises(UserError, match=sentence):
        load_vit(folder(vit()), **options)


def test_an_image_size_that_patches_do_not_fill_is_refused(folder: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="36"):
        load_vit(folder(vit()), image_size=36)


# A weights file for a named architecture.


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_weights_file_gives_an_architecture_its_very_weights(
    prefix: str, name: str, folder: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    source = vit(seed=1)
    state = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    if name.endswith(".pth"):
        torch.save({"model": state, "epoch": 3}, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    loaded = load_vit(folder(vit()), pretrained=str(tmp_path / name))
    assert torch.equal(loaded(pixels()), source(pixels()))
    assert f"{tmp_path / name}: 32 weights loaded; new: none; left over: none" in caplog.text


def test_a_weights_file_is_resampled_to_another_image_size(folder: Callable[..., str], tmp_path: Path) -> None:
    source = vit(seed=1)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded: Any = load_vit(folder(vit()), pretrained=str(tmp_path / "weights.pth"), image_size=64)
    expected = resample_abs_pos_embed(source.encoder.pos_embedding, [8, 8])
    torch.testing.assert_close(loaded.encoder.pos_embedding, expected)


def test_a_head_that_does_not_fit_is_new_and_said(
    folder: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    source = vit(seed=1, num_classes=7)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded = load_vit(folder(vit()), pretrained=str(tmp_path / "weights.pth"))
    assert torch.equal(features(loaded, pixels()), features(source, pixels()))
    assert "new: heads.head.bias, heads.head.weight; left over: heads.head.bias, heads.head.weight" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"num_layers": 1}, r"12 weights are missing and 0 have another shape"),
        ({"hidden_dim": 64}, r"0 weights are missing and 28 have another shape"),
        ({"patch_size": 4}, r"0 weights are missing and 1 have another shape \(conv_proj\.weight is \(32, 3, 4, 4\)"),
        ({"num_layers": 3}, r"has 12 weights of the backbone that .* has no place for \(encoder\.layers\.encoder_lay"),
    ],
    ids=["fewer blocks", "width", "patches", "more blocks"],
)
def test_weights_of_another_architecture_are_refused(
    overrides: dict[str, int], reason: str, folder: Callable[..., str], tmp_path: Path
) -> None:
    torch.save(vit(**overrides).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=reason) as caught:
        load_vit(folder(vit()), pretrained=str(tmp_path / "weights.pth"))
    assert "\n" not in str(caught.value)


def test_weights_of_another_library_are_refused(
    tiny_vit: Callable[..., Any], folder: Callable[..., str], tmp_path: Path
) -> None:
    torch.save(tiny_vit().state_dict(), tmp_path / "timm.pth")
    torch.save(vit().state_dict(), tmp_path / "torchvision.pth")
    with pytest.raises(UserError, match=r"timm\.pth holds another architecture than .* 30 weights are missing"):
        load_vit(folder(vit()), pretrained=str(tmp_path / "timm.pth"))
    save_vit(tiny_vit(), tmp_path / "timm")
    with pytest.raises(UserError, match=r"torchvision\.pth holds another architecture than .* weights are missing"):
        load_vit(str(tmp_path / "timm"), pretrained=str(tmp_path / "torchvision.pth"))


def test_a_file_alone_does_not_tell_the_architecture(tmp_path: Path) -> None:
    torch.save(vit().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"the architecture of .*weights\.pth can't be read from its weights; name the"):
        load_vit(str(tmp_path / "weights.pth"))


# Folders that are not whole.


def lacking(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    save_file({key: value for key, value in state.items() if "layer_1" not in key}, path / "model.safetensors")


def surplus(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    save_file(state | {"encoder.layers.encoder_layer_0.gamma": torch.ones(32)}, path / "model.safetensors")


def truncated(path: Path) -> None:
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:999])


def weightless(path: Path) -> None:
    (path / "model.safetensors").unlink()


def reconfigured(change: Callable[[dict[str, Any]], object], path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


UNFIT = r"model cannot be loaded: its config\.json and weights do not fit \("


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lacking, UNFIT),
        (surplus, UNFIT),
        (truncated, r"^\S*/model\.safetensors is not a readable checkpoint"),
        (weightless, r"^there is no weights file \S*; check the path$"),
        (partial(reconfigured, lambda config: config.pop("arguments")), UNFIT),
        (partial(reconfigured, lambda config: config.pop("label_names")), UNFIT),
        (partial(reconfigured, lambda config: config["arguments"].pop("mlp_dim")), UNFIT),
        (partial(reconfigured, lambda config: config["arguments"].update(hidden_dim=64)), UNFIT),
        (partial(reconfigured, lambda config: config["arguments"].update(depth=2)), UNFIT),
        (partial(reconfigured, lambda config: config["arguments"].update(image_size=36)), UNFIT),
    ],
    ids=[
        "weights gone",
        "weights too many",
        "truncated",
        "no weights",
        "no arguments",
        "no class names",
        "an argument gone",
        "another width",
        "an unknown argument",
        "patches that do not fill the image",
    ],
)
def test_a_damaged_folder_is_refused_in_a_sentence(
    damage: Callable[[Path], None], reason: str, folder: Callable[..., str]
) -> None:
    path = folder(vit())
    damage(Path(path))
    with pytest.raises(UserError, match=reason) as caught:
        load_vit(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [{"representation_size": 16}, {"norm_layer": partial(nn.LayerNorm, eps=1e-2)}],
    ids=["a hidden layer in the head", "another norm"],
)
def test_a_model_that_can_not_be_saved_whole_is_refused_or_comes_back(
    arguments: dict[str, Any], folder: Callable[..., str]
) -> None:
    source = vit(**arguments)
    try:
        path = folder(source)
    except UserError:
        return
    assert torch.equal(load_vit(path)(pixels()), source(pixels()))


# Students.


def test_a_fresh_student_has_the_shape_and_none_of_the_weights(folder: Callable[..., str]) -> None:
    teacher = load_vit(folder(vit()))
    student = student_like(teacher, num_classes=4)
    assert student.training
    assert replace(describe(student), classes=3) == describe(teacher)
    assert student(pixels()).shape == (2, 4)
    theirs = dict(teacher.named_parameters())
    same = [n for n, p in student.named_parameters() if p.dim() > 1 and torch.equal(p, theirs[n])]
    assert same == []
    assert labels_of(student) is None
    assert labels_of(teacher) == NAMES


def test_a_copied_student_keeps_the_backbone_and_gets_a_small_head(folder: Callable[..., str]) -> None:
    teacher = load_vit(folder(vit()))
    student: Any = student_from(teacher, num_classes=40)
    assert torch.equal(features(student.eval(), pixels()), features(teacher, pixels()))
    assert student.heads.head.weight.std().item() == pytest.approx(2e-5, rel=0.2)
    assert student.heads.head.bias.abs().max() == 0
    assert labels_of(student) is None


def test_a_standard_student_is_a_plain_vit_of_timm(folder: Callable[..., str]) -> None:
    teacher = load_vit(folder(vit()))
    student = student_like(teacher, num_classes=4, components="standard")
    ours, theirs = describe(student), describe(teacher)
    assert ours.library == "timm"
    assert (ours.grid, ours.width, ours.depth, ours.mean) == (theirs.grid, theirs.width, theirs.depth, theirs.mean)
    assert student(pixels()).shape == (2, 4)


def test_a_student_is_saved_and_comes_back(folder: Callable[..., str], tmp_path: Path) -> None:
    student = student_from(load_vit(folder(vit())), num_classes=2).eval()
    save_vit(student, tmp_path / "student", labels=["yes", "no"])
    again = load_vit(str(tmp_path / "student"))
    assert torch.equal(again(pixels()), student(pixels()))
    assert labels_of(again) == ["yes", "no"]


# Names.


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_b_61", "did you mean 'vit_b_16'?"),
        ("vit_h_16", "did you mean 'vit_"),
        ("ViT_L_16", "did you mean 'vit_l_16'?"),
        ("resnet18", "choose one of: vit_b_16, vit_b_32, vit_h_14, vit_l_16, vit_l_32"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(name: str, hint: str, pretrained: bool) -> None:
    with pytest.raises(UserError) as caught:
        load_vit(f"torchvision/{name}", pretrained=pretrained)
    assert str(caught.value).startswith(f"torchvision has no vision transformer {name!r}; {hint}")


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces torchvision's models, which have 86 million weights and more, by small ones; notes their `weights`."""
    asked: list[Any] = []

    def get_model(name: str, weights: Any) -> Any:
        asked.append((name, weights))
        return vit()

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    return asked


def test_a_name_gives_the_best_weights_or_none(small_models: list[Any]) -> None:
    assert torch.equal(load_vit("torchvision/vit_b_16")(pixels()), vit()(pixels()))
    load_vit("torchvision/vit_l_16", pretrained=False)
    assert small_models == [("vit_b_16", "DEFAULT"), ("vit_l_16", None)]


def test_a_name_takes_an_image_size_and_classes(small_models: list[Any]) -> None:
    loaded = load_vit("torchvision/vit_b_16", image_size=48, num_classes=5)
    assert (describe(loaded).grid, describe(loaded).classes) == ((6, 6), 5)
    assert loaded(pixels(48)).shape == (2, 5)


def test_a_name_gets_the_weights_of_a_file_and_none_are_fetched(small_models: list[Any], tmp_path: Path) -> None:
    source = vit(seed=1)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded = load_vit("torchvision/vit_b_16", pretrained=str(tmp_path / "weights.pth"))
    assert torch.equal(loaded(pixels()), source(pixels()))
    assert small_models == [("vit_b_16", None)]


@pytest.mark.parametrize(
    "error",
    [
        URLError("Temporary failure in name resolution"),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value (expected "c867db91", got "e3b0c442")'),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_network_weights_by_name_are_refused_with_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    sentence = (
        rf"^the weights of torchvision/vit_b_32 could not be fetched \({type(error).__name__}\); connect to the "
        "network, or give a local file with --pretrained FILE, or random weights with --pretrained false$"
    )
    with pytest.raises(UserError, match=sentence), torch.device("meta"):  # 88 million weights, of which none is made
        load_vit("torchvision/vit_b_32")


def test_published_names_of_before_torchvisions_second_mlp_are_known(tmp_path: Path) -> None:
    """Torchvision's own files have linear_1 and linear_2 where its networks have 0 and 3."""
    model = torchvision.models.vit_b_32(num_classes=3)
    with torch.no_grad():
        nn.init.normal_(model.heads.head.weight)  # torchvision begins with zeros
    renamed = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in model.state_dict().items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in renamed
    torch.save(renamed, tmp_path / "published.pth")
    loaded = load_vit("torchvision/vit_b_32", pretrained=str(tmp_path / "published.pth"), num_classes=3)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model.eval()(images), atol=1e-5, rtol=0)
