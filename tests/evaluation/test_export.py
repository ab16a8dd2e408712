"""The verb `export`: what other programs load answers as the run does."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from attention_transfer import (
    AttentionTransfer,
    Pairing,
    Run,
    UserError,
    describe,
    ensemble,
    export,
    load_run,
    predict,
    student_from,
    train,
)
from attention_transfer.data import digits
from attention_transfer.evaluation import Classifier, ExportReport, LoadedRun
from attention_transfer.evaluation.formats import format_problems, write_format
from attention_transfer.evaluation.onnx_format import open_onnx, write_onnx
from attention_transfer.evaluation.preprocessing import for_timm, for_transformers, grey_levels_apart
from attention_transfer.training import Recipe
from attention_transfer.vit import save_vit

RECIPE = Recipe(epochs=4, validate_every=4, lr=1e-2, ema_decay=None)
SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3}
NAMES = [str(digit) for digit in range(10)]


def _train(preset: str, teacher: str, out: Path, **options: Any) -> Run:
    return train(preset, teacher=teacher, shots=2, recipe=RECIPE, out=str(out), **options)


@pytest.fixture(scope="module")
def copied(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(_train("copy", teacher, tmp_path_factory.mktemp("copied") / "run").path)


@pytest.fixture(scope="module")
def grey(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student of timm that takes grey images of 8x8 pixels."""
    return str(_train("finetune", teacher, tmp_path_factory.mktemp("grey") / "run").path)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student of timm that takes colour images of 72x72 pixels, which are cropped."""
    folder = tmp_path_factory.mktemp("colour")
    save_vit(timm.create_model("vit_tiny_patch16_224", img_size=72, patch_size=24, **SMALL), folder / "teacher")
    return str(_train("finetune", str(folder / "teacher"), folder / "run").path)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student of transformers."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("native")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=10)
    save_vit(transformers.ViTForImageClassification(config), folder / "teacher")
    return str(_train("finetune", str(folder / "teacher"), folder / "run").path)


@pytest.fixture(scope="module")
def copied_onnx(copied: str, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    pytest.importorskip("onnxscript")
    return export(copied, to="onnx", out=str(tmp_path_factory.mktemp("onnx") / "model"))


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    digits().test.images[0].save(path)
    return path


def _logits(run: str, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = load_run(run).network(images)
    return logits


@pytest.mark.parametrize(("kind", "shape"), [("grey", (5, 1, 8, 8)), ("colour", (5, 3, 72, 72))])
def test_timm_loads_the_exported_folder(
    kind: str, shape: tuple[int, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(kind)
    report = export(run, to="timm", out=str(tmp_path / "model"))
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    images = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(model(images), _logits(run, images), atol=1e-5, rtol=0)
    assert model.pretrained_cfg["label_names"] == NAMES
    assert (report.random_images, report.real_images) == (16, 64)
    assert report.grey_levels is not None and report.grey_levels < 0.1
    assert f"{report.difference:.1e}" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["grey", "colour", "native"])
def test_a_pipeline_of_transformers_answers_as_predict_does(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, digit: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    run = request.getfixturevalue(kind)
    export(run, to="hf", out=str(tmp_path / "model"))
    answers = transformers.pipeline("image-classification", str(tmp_path / "model"))(str(digit), top_k=10)
    (expected,) = predict(run, [str(digit)], top=10)
    assert answers[0]["label"] == expected.classes[0]
    theirs = {answer["label"]: answer["score"] for answer in answers}
    ours = dict(zip(expected.classes, expected.probabilities, strict=True))
    # The resampling of the two may differ by a grey level in 255; timm's is the same.
    assert theirs == pytest.approx(ours, abs=0.02 if kind == "native" else 1e-5)


def test_a_grey_students_colours_are_its_luma(grey: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(grey, to="hf", out=str(tmp_path / "model"))
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    colours = torch.rand(3, 3, 8, 8)
    luma = (colours * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    with torch.no_grad():
        found = model((colours - 0.5) / 0.5).logits
    torch.testing.assert_close(found, _logits(grey, (luma - 0.5) / 0.5), atol=1e-5, rtol=0)
    assert "RGB, whose luma" in (tmp_path / "model" / "README.md").read_text()


@pytest.fixture(scope="module")
def native_onnx(native: str, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    pytest.importorskip("onnxscript")
    return export(native, to="onnx", out=str(tmp_path_factory.mktemp("onnx") / "model"))


@pytest.mark.parametrize("kind", ["copied", "native"])
def test_onnxruntime_gives_the_runs_logits_for_any_number_of_images(kind: str, request: pytest.FixtureRequest) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run, report = (request.getfixturevalue(name) for name in (kind, f"{kind}_onnx"))
    session = onnxruntime.InferenceSession(str(report.path / "model.onnx"))
    spec = load_run(run).spec
    for batch in (1, 7):
        images = torch.randn(batch, spec.channels, *spec.image_size)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        np.testing.assert_allclose(found, _logits(run, images), atol=1e-5)
    content = json.loads((report.path / "preprocessing.json").read_text())
    stored = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert stored == content
    assert content["classes"] == NAMES
    assert content["mean"] == list(spec.mean)
    assert content["input"]["shape"] == ["batch", spec.channels, *spec.image_size]
    assert report.grey_levels is None


def test_of_a_copied_students_teacher_only_what_it_attends_by_is_exported(
    copied: str, copied_onnx: ExportReport
) -> None:
    onnx = pytest.importorskip("onnx")
    weights = onnx.load(copied_onnx.path / "model.onnx").graph.initializer
    held = sum(int(np.prod(weight.dims)) for weight in weights if weight.data_type == onnx.TensorProto.FLOAT)
    loaded = load_run(copied)
    student, teacher = loaded.network.student, loaded.network.transfer.teacher
    assert teacher is not None
    whole = [sum(p.numel() for p in model.parameters()) for model in (student, teacher)]
    last: Any = teacher.get_submodule("blocks.1")
    unused = sum(p.numel() for module in (last.mlp, last.norm2, last.attn.proj) for p in module.parameters())
    assert whole[0] < held <= sum(whole) - unused


def test_an_onnx_file_tells_nothing_of_the_machine(copied_onnx: ExportReport) -> None:
    content = (copied_onnx.path / "model.onnx").read_bytes()
    for trace in (b".py", b"site-packages", str(Path(timm.__file__).parent).encode()):
        assert trace not in content


def test_an_onnx_model_of_a_fixed_number_of_images(grey: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    export(grey, to="onnx", out=str(tmp_path / "model"), batch_size=3)
    session = onnxruntime.InferenceSession(str(tmp_path / "model" / "model.onnx"))
    assert session.get_inputs()[0].shape == [3, 1, 8, 8]
    assert json.loads((tmp_path / "model" / "preprocessing.json").read_text())["output"]["shape"] == [3, 10]


def test_an_onnx_model_that_can_not_be_run_is_said_in_a_sentence(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("NoSuchOperation", ["images"], ["logits"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in ("images", "logits")]
    graph = onnx.helper.make_graph([node], "graph", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="onnxruntime can't run the model"):
        open_onnx(tmp_path, None)


def test_weights_that_no_single_file_holds_go_beside_it(
    grey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(sys.modules[write_onnx.__module__], "_LARGEST", 0)
    report = export(grey, to="onnx", out=str(tmp_path / "model"))
    names = sorted(file.name for file in report.path.iterdir())
    assert names == ["README.md", "export.json", "model.onnx", "model.onnx.data", "preprocessing.json"]


def test_a_copied_student_is_traced_with_its_teachers_attention(
    teacher: str, copied: str, tmp_path: Path, images: Tensor
) -> None:
    matched = _train("copy", teacher, tmp_path / "matched", pairing=Pairing(heads="match")).path
    for run in (copied, str(matched)):
        network = load_run(run).network
        with torch.no_grad():
            program = torch.export.export(network, (images,), strict=False)
            torch.testing.assert_close(program.module()(images), network(images), atol=1e-6, rtol=0)
            alone = network.student(images)
        assert (alone - network(images)).abs().max() > 1e-4  # by its own queries and keys it answers otherwise


def test_a_run_is_whole_without_its_teachers_folder(teacher: str, tmp_path: Path, images: Tensor) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    run = _train("copy", str(tmp_path / "teacher"), tmp_path / "run").path
    expected = _logits(str(run), images)
    shutil.rmtree(tmp_path / "teacher")
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    assert torch.equal(_logits(str(moved), images), expected)


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_an_exported_folder_is_used_like_a_run(grey: str, to: Any, tmp_path: Path, digit: Path) -> None:
    export(grey, to=to, out=str(tmp_path / "model"))
    (expected,) = predict(grey, [str(digit)])
    (found,) = predict(str(tmp_path / "model"), [str(digit)])
    assert found.classes == expected.classes
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert load_run(tmp_path / "model").classes == tuple(NAMES)
    with pytest.raises(UserError, match="exported model, which has no data set"):
        ensemble([grey, str(tmp_path / "model")])


def test_the_folder_lies_in_the_run_by_default(grey: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(grey, run)
    report = export(str(run))
    assert report.path == run / "export" / "timm"
    assert {oct(file.stat().st_mode & 0o777) for file in report.path.iterdir()} == {"0o644"}


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_formats_that_hold_one_network_refuse_a_copied_student(copied: str, to: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"queries and keys.*export it to onnx.*run folder") as caught:
        export(copied, to=to, out=str(tmp_path / "model"))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_student_of_another_library_is_refused_by_name(native: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a model of hf, not of timm; export it to hf or onnx"):
        export(native, to="timm", out=str(tmp_path / "model"))


def _loaded(model: nn.Module) -> LoadedRun:
    spec = describe(model)
    network = Classifier(AttentionTransfer(None, model, [])).eval()
    return LoadedRun(network, spec, tuple(map(str, range(spec.classes))), {}, Path("run"))


def test_formats_that_have_no_such_model_say_which_has(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torchvision_vit = VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=3)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
    backbone = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes, image_size=16, patch_size=8))
    grey_vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_channels=1)
    )
    for model, to, message in (
        (torchvision_vit, "timm", "a model of torchvision, not of timm; export it to onnx"),
        (torchvision_vit, "hf", "a model of torchvision, not of timm or transformers; export to onnx"),
        (student_from(backbone, num_classes=3), "hf", "a backbone with a head of this package"),
        (grey_vit, "hf", "takes 1 channels"),
    ):
        (problem,) = format_problems(_loaded(model), to, None)  # type: ignore[arg-type]
        assert message in problem
        assert "onnx" in problem


def test_torchvisions_attention_is_in_the_onnx_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    loaded = _loaded(VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=3))
    nn.init.normal_(loaded.network.student.get_parameter("heads.head.weight"))  # torchvision begins with zeros
    write_onnx(loaded, tmp_path, None)
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(open_onnx(tmp_path, None)(images), loaded.network(images), atol=1e-5, rtol=0)


def test_a_preprocessing_that_timm_can_not_copy_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_vit(timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), patch_size=32, **SMALL), tmp_path / "teacher")
    run = _train("scratch", str(tmp_path / "teacher"), tmp_path / "run").path
    with caplog.at_level(logging.WARNING, "attention_transfer"):
        report = export(str(run))
    assert report.grey_levels is not None and report.grey_levels > 3
    assert "give the model images that attention_transfer.data.eval_transform prepared" in caplog.text


@pytest.mark.parametrize("damage", [1e-2, float("nan")])
@pytest.mark.parametrize("out", ["model", "some/folder/model"])
def test_a_model_that_answers_otherwise_is_not_kept(
    grey: str, damage: float, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(loaded: Any, to: Any, folder: Path, batch_size: int | None) -> None:
        write_format(loaded, to, folder, batch_size)
        state = load_file(folder / "model.safetensors")
        save_file(state | {"head.bias": state["head.bias"] + damage}, folder / "model.safetensors")

    monkeypatch.setattr("attention_transfer.evaluation.export.write_format", spoilt)
    with pytest.raises(UserError, match=r"from the run's, more than 0.0001, so it was not kept"):
        export(grey, out=str(tmp_path / out))
    assert list(tmp_path.iterdir()) == []


def test_an_exported_model_is_replaced_only_where_that_is_asked_for(grey: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    first = export(grey, out=str(out))
    (out / "mine").write_text("mine")
    before = (out / "model.safetensors").stat().st_ino
    with pytest.raises(UserError, match="exists; choose another folder"):
        export(grey, out=str(out))
    assert (out / "model.safetensors").stat().st_ino == before
    assert export(grey, out=str(out), overwrite=True) == replace(first)
    assert (out / "model.safetensors").stat().st_ino != before
    assert (out / "mine").read_text() == "mine"


def test_the_folders_of_the_run_itself_are_no_place_for_an_export(grey: str, tmp_path: Path) -> None:
    for place in (f"{grey}/model", f"{grey}/figures", f"{grey}/checkpoints/new"):
        with pytest.raises(UserError, match="is a folder of the run itself"):
            export(grey, out=place, overwrite=True)
    (tmp_path / "export.json").write_text('{"exports": ["of another program"]}')
    with pytest.raises(UserError, match="holds no exported model"):
        export(grey, out=str(tmp_path), overwrite=True)


def test_an_exported_model_stays_where_the_new_one_can_not_be_written(
    grey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    export(grey, out=str(out))
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr("attention_transfer.evaluation.export.write_whole", full)
    with pytest.raises(OSError, match="No space left") as caught:
        export(grey, out=str(out), overwrite=True)
    assert caught.value.filename == str(out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_disk_of_its_own_is_refused_before_the_work(
    grey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "disk")
    with pytest.raises(UserError, match="disk is a mounted disk, which can't be replaced; choose a folder in it"):
        export(grey, out=str(tmp_path / "disk"))


def test_what_is_no_exported_model_is_never_replaced(grey: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="holds no exported model"):
        export(grey, out=str(tmp_path), overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": "no/such/run"}, "there is no run no/such/run; check the path"),
        ({"to": "tensorrt"}, "to is 'tensorrt'; choose one of: hf, onnx, timm"),
        ({"to": "onnx", "batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"to": "timm", "batch_size": 4}, "batch_size is of the onnx format"),
        ({"out": __file__}, "is a file; choose a folder"),
    ],
)
def test_impossible_requests_are_refused(grey: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        export(**{"run": grey, "out": str(tmp_path / "model"), **options})
    assert list(tmp_path.iterdir()) == []


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(UserError) as caught:
        export("no/such/run", to="onxx", batch_size=-1)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 3
    assert "did you mean 'onnx'?" in str(caught.value)


def test_a_teacher_is_no_classifier(teacher: str) -> None:
    with pytest.raises(UserError, match="holds no run"):
        export(teacher)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    grey: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=re.escape("pip install 'attention-transfer[onnx]'")):
        export(grey, to="onnx", out=str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


def test_without_its_data_a_model_is_checked_on_random_images(
    grey: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(grey, run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("data: digits", "data: /nowhere/at-all"))
    with caplog.at_level(logging.INFO, "attention_transfer"):
        report: ExportReport = export(str(run))
    assert report.real_images == 0
    assert "checked on random images alone" in caplog.text


@pytest.mark.parametrize("side", [8, 32, 64, 72, 96, 224, 384, 392, 518])
def test_timm_prepares_images_as_training_does(tiny_vit: Callable[..., Any], side: int) -> None:
    spec = replace(describe(tiny_vit(in_chans=3)), image_size=(side, side))
    settings = for_timm(spec)
    assert grey_levels_apart(spec, create_transform(**settings)) < 0.1
    other = create_transform(**{**settings, "crop_pct": 0.8, "crop_mode": "center"})
    assert grey_levels_apart(spec, other) > 20


@pytest.mark.parametrize("side", [8, 64, 224])
def test_transformers_prepares_images_as_training_does(tiny_vit: Callable[..., Any], side: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    spec = replace(describe(tiny_vit(in_chans=3)), image_size=(side, side))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(for_transformers(spec)))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    apart = grey_levels_apart(
        spec, lambda image: processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
    )
    assert apart < 3


def test_a_position_bias_is_in_the_onnx_model_for_any_number_of_images(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    beit = timm.create_model(
        "beit_base_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=3
    ).eval()
    with torch.no_grad():
        for block in beit.blocks:
            nn.init.normal_(block.attn.relative_position_bias_table)  # of zeros, it could be left out unseen
    loaded = _loaded(beit)
    write_onnx(loaded, tmp_path, None)
    answer = open_onnx(tmp_path, None)
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(answer(images), loaded.network(images), atol=1e-5, rtol=0)
