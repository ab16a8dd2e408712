"""Which network is read from a published file, and what is refused. How it then loads is seen in test_weights.py."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.vit import load_vit, read_state

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # of random bytes

State = dict[str, Tensor]


def network(mark: float) -> State:
    """The smallest state of a ViT; its class token tells it from another."""
    return {
        "cls_token": torch.full((1, 1, 4), float(mark)),
        "patch_embed.proj.weight": torch.zeros(4, 1, 2, 2),
        "blocks.0.norm1.weight": torch.ones(4),
        "blocks.0.attn.qkv.weight": torch.zeros(12, 4),
    }


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def junk(*names: str) -> State:
    return {name: torch.zeros(2, 2) for name in names}


def taken(state: State) -> float:
    """The mark of the network that was read, whose weights have no prefix."""
    assert network(0).keys() <= state.keys()
    return state["cls_token"][0, 0, 0].item()


# What trainings save beside the weights.
TRAINING: dict[str, Any] = {
    "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    "epoch": 3,
    "scaler": {"scale": 65536.0, "growth_factor": 2.0},
    "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.95), model="mae_vit_base_patch16", device="cuda", seed=None),
}
DINO_HEAD = junk("mlp.0.weight", "mlp.0.bias", "last_layer.weight_g", "last_layer.weight_v")
MOCO_HEAD = junk("0.weight", "1.weight", "1.running_mean", "1.num_batches_tracked", "3.weight", "6.weight")
TOKEN = junk("masked_embed")


@dataclass(frozen=True)
class Published:
    """A layout: the networks in it are marked 1 for the one that is taken, 2, 3, … for others by their names."""

    content: dict[str, Any]
    log: str = ""  # what is said where a choice was made
    others: dict[str, float] = field(default_factory=dict)


EVALUATED = "the network that its authors evaluate (DINO, DINOv2, iBOT)"
FILES = {
    "MAE": Published({"model": network(1)}),
    "MAE, with decoder": Published({"model": network(1) | junk("mask_token", "decoder_blocks.0.norm1.weight")}),
    "MAE, training": Published({"model": network(1), **TRAINING}),
    "DINO": Published(network(1)),
    "DINO, training": Published(
        {
            "student": under("module.backbone.", network(2)) | under("module.head.", DINO_HEAD),
            "teacher": under("backbone.", network(1)) | under("head.", DINO_HEAD),
            "dino_loss": {"center": torch.zeros(1, 8)},
            **TRAINING,
        },
        f"holds teacher.backbone, student.module.backbone; taken: teacher.backbone, {EVALUATED}",
        {"student": 2},
    ),
    "DINOv2": Published(network(1) | junk("mask_token", "register_tokens", "blocks.0.ls1.gamma")),
    "DINOv2, teacher": Published(
        {"teacher": under("backbone.", network(1)) | under("dino_head.", DINO_HEAD) | under("ibot_head.", DINO_HEAD)}
    ),
    "iBOT, teacher": Published({"state_dict": network(1)}),
    "iBOT, training": Published(
        {
            "student": under("module.backbone.", network(2) | TOKEN) | under("module.head.", DINO_HEAD),
            "teacher": under("module.backbone.", network(1)) | under("module.head.", DINO_HEAD),
            "ibot_loss": {"center": torch.zeros(1, 8), "center2": torch.zeros(1, 1, 8)},
            "fp16_scaler": {"scale": 65536.0},
            **TRAINING,
        },
        f"taken: teacher.module.backbone, {EVALUATED}",
        {"student": 2},
    ),
    "MSN": Published(
        {
            "encoder": under("module.", network(2) | junk("fc.fc1.weight", "fc.bn1.running_mean")),
            "target_encoder": under("module.", network(1) | junk("fc.fc1.weight", "fc.bn1.running_mean")),
            "prototypes": torch.zeros(4, 2),
            "opt": TRAINING["optimizer"],
            "epoch": 3,
            "temperature": 0.1,
        },
        "taken: target_encoder.module, the encoder that its authors evaluate (I-JEPA, MSN)",
        {"encoder": 2},
    ),
    "I-JEPA": Published(
        {
            "encoder": under("module.", network(2)),
            "predictor": under("module.", junk("predictor_embed.weight", "predictor_blocks.0.norm1.weight")),
            "target_encoder": under("module.", network(1)),
            "opt": TRAINING["optimizer"],
            "scaler": None,
        },
        "taken: target_encoder.module, the encoder that its authors evaluate (I-JEPA, MSN)",
        {"encoder": 2},
    ),
    "MoCo v3": Published(
        {
            "epoch": 300,
            "arch": "vit_small",
            "state_dict": under("module.base_encoder.", network(1))
            | under("module.base_encoder.head.", MOCO_HEAD)
            | under("module.momentum_encoder.", network(2))
            | under("module.momentum_encoder.head.", MOCO_HEAD)
            | under("module.predictor.", MOCO_HEAD),
            "optimizer": TRAINING["optimizer"],
        },
        "taken: state_dict.module.base_encoder, the encoder that its authors evaluate (MoCo v3)",
        {"momentum_encoder": 2},
    ),
    "MoCo v3, linear": Published(
        {"arch": "vit_small", "state_dict": under("module.", network(1)), "best_acc1": torch.tensor(73.4)}
    ),
    "DeiT": Published({"model": network(1) | junk("head.weight", "head_dist.weight")}),
    "DeiT, training": Published(
        {"model": network(2), "model_ema": network(1), "lr_scheduler": {"_step_count": 3}, **TRAINING},
        "holds model_ema, model; taken: model_ema, the moving average of the weights",
        {"model": 2},
    ),
    "BEiT": Published({"model": network(1) | junk("mask_token", "lm_head.weight", "rel_pos_bias.table")}),
    "BEiT, DeepSpeed": Published({"module": network(1)}),
    "Attention Transfer": Published(
        {"model": under("teacher.", network(2)) | under("student.", network(1)), **TRAINING},
        "holds model.student, model.teacher; taken: model.student, the network that was trained",
        {"teacher": 2},
    ),
    "Attention Transfer, averaged": Published(
        {
            "model": under("teacher.", network(2)) | under("student.", network(3)),
            "model_ema": under("teacher.", network(4)) | under("student.", network(1)),
            **TRAINING,
        },
        "taken: model_ema.student, the moving average of the weights",
    ),
    "timm, training": Published(
        {"arch": "vit_tiny_patch16_224", "state_dict": network(2), "state_dict_ema": network(1), "version": 2},
        "taken: state_dict_ema, the moving average of the weights",
        {"state_dict": 2},
    ),
    "wrapped": Published(under("module._orig_mod.", network(1))),
}
EVERY_FILE = pytest.mark.parametrize("file", FILES.values(), ids=FILES.keys())


def written(content: object, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@EVERY_FILE
def test_the_network_that_its_authors_evaluate_is_read(
    file: Published, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    assert taken(read_state(written(file.content, tmp_path / "weights.pth"))) == 1
    messages = [text for text in map(logging.LogRecord.getMessage, caplog.records) if " holds " in text]
    if file.log:
        assert len(messages) == 1
        assert messages[0].startswith("weights.pth holds ")
        assert f"{file.log} (another can be named: weights.pth#" in messages[0]
    else:
        assert messages == []


@pytest.mark.parametrize(
    ("file", "name", "mark"),
    [(file, name, mark) for file in FILES.values() for name, mark in file.others.items()],
    ids=[f"{title}: {name}" for title, file in FILES.items() for name in file.others],
)
def test_another_network_can_be_named(file: Published, name: str, mark: float, tmp_path: Path) -> None:
    assert taken(read_state(written(file.content, tmp_path / "weights.pth"), network=name)) == mark


@pytest.mark.parametrize("name", ["teacher.backbone", "student.module.backbone"])
def test_a_network_can_be_named_as_the_log_line_names_it(name: str, tmp_path: Path) -> None:
    path = written(FILES["DINO, training"].content, tmp_path / "weights.pth")
    assert taken(read_state(path, network=name)) == {"teacher.backbone": 1, "student.module.backbone": 2}[name]


def test_a_choice_among_several_of_the_same_name_is_logged_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    path = written(FILES["Attention Transfer, averaged"].content, tmp_path / "weights.pth")
    assert taken(read_state(path, network="student")) == 1
    assert "taken: model_ema.student, the moving average of the weights" in caplog.text


def test_a_network_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    moco = written(FILES["MoCo v3"].content, tmp_path / "moco.pth.tar")
    there = r"state_dict\.module\.base_encoder, state_dict\.module\.momentum_encoder$"
    with pytest.raises(UserError, match=rf"moco\.pth\.tar holds no network 'teacher'; it holds {there}"):
        read_state(moco, network="teacher")
    bare = written(network(1), tmp_path / "bare.pth")
    with pytest.raises(UserError, match=r"holds no network 'student'; it holds one without a name"):
        read_state(bare, network="student")


@pytest.mark.parametrize("name", ["weights.pth", "weights.pth.tar", "weights.pt", "pytorch_model.bin", "weights"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_a_pytorch_file_may_have_any_ending_and_either_format(name: str, zipped: bool, tmp_path: Path) -> None:
    path = written({"model": network(1)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert taken(read_state(path)) == 1


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "teacher.backbone.", "student.module.backbone."])
def test_a_safetensors_file_has_its_prefixes_taken_off(prefix: str, tmp_path: Path) -> None:
    save_file(under(prefix, network(1)), tmp_path / "weights.safetensors")
    assert taken(read_state(tmp_path / "weights.safetensors")) == 1


def test_ordered_dictionaries_and_parameters_are_read_as_tensors_are(tmp_path: Path) -> None:
    state = OrderedDict((key, torch.nn.Parameter(value)) for key, value in network(1).items())
    assert taken(read_state(written({"state_dict": state}, tmp_path / "weights.pth"))) == 1


def test_what_is_no_vision_transformer_is_read_without_its_outer_keys(tmp_path: Path) -> None:
    path = written({"state_dict": under("module.", junk("conv1.weight", "fc.weight"))}, tmp_path / "weights.pth")
    assert read_state(path).keys() == {"conv1.weight", "fc.weight"}


def test_reading_a_file_allows_nothing_to_be_unpickled_later(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    path = written({"model": network(1), **TRAINING}, tmp_path / "weights.pth")
    read_state(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_arguments_with_paths_are_read_as_submitit_leaves_them(zipped: bool, tmp_path: Path) -> None:
    args = argparse.Namespace(output_dir=Path("/checkpoint/experiments/4"), log_dir=PurePosixPath("logs"))
    path = written({"model": network(1), "args": args}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert taken(read_state(path)) == 1


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


WRITERS: dict[str, Callable[[object, Path], object]] = {
    "zip": torch.save,
    "before PyTorch 1.6": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "plain pickle": pickled,
}


def refusal(path: Path) -> str:
    """The sentence that a file is refused with; it names the file and is one line."""
    with pytest.raises(UserError) as caught:
        read_state(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("place", ["beside the weights", "in the arguments", "alone"])
def test_pickled_code_is_refused_and_not_run(
    place: str, write: Callable[[object, Path], object], tmp_path: Path
) -> None:
    code, path = Malicious(tmp_path / "ran"), tmp_path / "weights.pth"
    contents: dict[str, object] = {
        "beside the weights": {"model": network(1), "callback": code},
        "in the arguments": {"model": network(1), "args": argparse.Namespace(model=code)},
        "alone": code,
    }
    write(contents[place], path)
    assert "pickled code, which is not run" in refusal(path)
    with pytest.raises(UserError, match="pickled code"):
        load_vit(str(path))
    with pytest.raises(UserError, match="pickled code"):
        load_vit("builtin/vit_digits", pretrained=str(path))
    assert not (tmp_path / "ran").exists()


def test_a_refusal_names_what_was_found_without_terminal_codes(tmp_path: Path) -> None:
    sentence = refusal(written({"model": network(1), "code": Malicious(tmp_path / "ran")}, tmp_path / "weights.pth"))
    assert "\x1b" not in sentence
    assert "posix.mkdir" in sentence


@pytest.mark.parametrize("name", ["weights.pth", "weights.pth.tar", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(share: float, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(network(1), path)
    else:
        torch.save({"model": network(1)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    sentence = refusal(path)
    assert "is not a readable checkpoint" in sentence
    assert sentence.endswith("; download it again or save it as safetensors")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 346551216\n",
        b"PK\x03\x04",
        b"\x93NUMPY\x01\x00",
        bytes(100),
    ],
    ids=["a web page", "a Git LFS pointer", "the start of an archive", "an array", "zeros"],
)
def test_a_file_of_another_kind_is_refused(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert "is not a readable checkpoint" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {}},
        {"epoch": 3, "args": argparse.Namespace(lr=1.0)},
        {"optimizer": TRAINING["optimizer"]},
        torch.ones(3),
        [network(1)],
        None,
        "weights",
    ],
    ids=["nothing", "no weights", "no network", "an optimiser", "a tensor", "a list", "none", "text"],
)
def test_a_checkpoint_without_weights_is_refused(content: object, tmp_path: Path) -> None:
    path = written(content, tmp_path / "weights.pth")
    assert refusal(path) == f"{path} holds no tensors; name a file of model weights"


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    assert "pickled code" in refusal(written(torch.nn.Linear(2, 2), tmp_path / "weights.pth"))


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    assert "weights.pth" in refusal(written(content, tmp_path / "weights.pth"))


def test_a_folder_and_a_missing_file_are_no_weights_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.pth"):
        with pytest.raises(UserError, match=rf"^there is no weights file {path}; check the path$"):
            read_state(path)


def whole_or_refused(path: Path) -> None:
    try:
        state = read_state(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert state
        assert all(isinstance(value, Tensor) for value in state.values())


STARTS = [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95", b'\x10\x00\x00\x00\x00\x00\x00\x00{"', b"ustar"]


@settings(deadline=None, max_examples=100)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=60), suffix=st.sampled_from(["pth", "safetensors"]))
@example(start=b"\x80\x02", rest=b"}q\x00.", suffix="pth")  # an empty dictionary
@example(start=b"", rest=b"\x02\x00\x00\x00\x00\x00\x00\x00{}", suffix="safetensors")  # no tensors
@example(start=b"", rest=b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", suffix="safetensors")  # a header of 8 exabytes
def test_no_bytes_get_past_as_weights_or_as_another_error(
    start: bytes, rest: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes.{suffix}"
    path.write_bytes(start + rest)
    with pytest.raises(UserError, match=rf"bytes\.{suffix}"):
        read_state(path)


@settings(deadline=None, max_examples=100)
@given(
    place=st.floats(0, 1, exclude_max=True),
    value=st.integers(0, 255),
    kind=st.sampled_from(["zip", "before PyTorch 1.6", "safetensors"]),
)
def test_a_file_with_one_wrong_byte_is_read_or_refused(
    place: float, value: int, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(network(1), path)
    else:
        WRITERS[kind]({"model": network(1), "args": argparse.Namespace(lr=1.0)}, path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = value
    path.write_bytes(content)
    whole_or_refused(path)


def _torchscript(path: Path) -> None:
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in network(1).items():
                self.register_buffer(name.replace(".", "_"), value)

        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.save(torch.jit.script(Named()), path)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("pickle", "tensors", "storages", "sys_info"):  # as torch wrote them before version 0.4
            archive.addfile(tarfile.TarInfo(name))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("write", [_torchscript, _tar])
def test_programs_and_archives_are_refused_in_a_sentence(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt (is not a readable checkpoint|holds)"):
        load_vit(str(tmp_path / "model.pt"))
