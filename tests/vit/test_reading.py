"""What stands in a checkpoint beside its weights is left out, and nothing of it is run."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.vit import load_vit, read_state

STATE = {"cls_token": torch.ones(1, 1, 4), "patch_embed.proj.weight": torch.zeros(4, 1, 2, 2)}


class Colour(enum.Enum):
    RED = 1


class Settings(dict[str, Any]):
    """As Lightning's AttributeDict, EasyDict and others: a dictionary with attributes."""


class Options:
    """As OmegaConf's: an object with a state."""

    def __init__(self) -> None:
        self.lr = 1e-3


HARMLESS: dict[str, Any] = {
    "a numpy number": np.float64(81.2),
    "a numpy array": np.arange(3.0),
    "a default dictionary": collections.defaultdict(list, a=[1]),
    "a date": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "a namespace": argparse.Namespace(path=Path("/x"), size=torch.Size([2]), dtype=torch.float16),
    "an enumeration": {Colour.RED: 1},
    "a dictionary of another package": Settings(lr=1),
    "an object of another package": Options(),
    "a class as a key": {Options: 1},
    "a partial": functools.partial(Options),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("what", HARMLESS)
def test_harmless_objects_are_left_out(what: str, zipped: bool, protocol: int, tmp_path: Path) -> None:
    content = {"state_dict": STATE, "more": HARMLESS[what]}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    state = read_state(tmp_path / "w.pth")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], value) for name, value in STATE.items())


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("beside", [None, np.float64(1)], ids=["alone", "beside harmless objects"])
def test_what_is_called_is_refused_and_not_run(beside: Any, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    calls = {
        "exec": Calls(exec, f"open({str(ran)!r}, 'w')"),
        "eval": Calls(eval, f"open({str(ran)!r}, 'w')"),
        "getattr": Calls(getattr, Path, "touch"),
        "Popen": Calls(subprocess.Popen, ["touch", str(ran)]),
        "import": Calls(__import__, "this"),
    }
    for name, call in calls.items():
        torch.save({"model": STATE, "beside": beside, "code": call}, tmp_path / "w.pth")
        with pytest.raises(UserError, match="pickled code, which is not run"):
            read_state(tmp_path / "w.pth")
        assert not ran.exists(), name


def test_an_archive_that_unpacks_to_far_more_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_transfer.vit.reading._UNPACKED", 2**20)
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**21))
    with pytest.raises(UserError, match="it unpacks to"):
        read_state(tmp_path / "w.npz")


def test_dictionaries_that_hold_each_other_twice_are_refused_in_time(tmp_path: Path) -> None:
    content: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(60):
        content = {"a": content, "b": content}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="too many or too deep"):
        read_state(tmp_path / "w.pth")


def test_arrays_with_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", code=np.array([Calls(exec, "1")], dtype=object))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_state(tmp_path / "w.npz")


def test_an_index_reads_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(UserError, match="no file beside it"):
        read_state(tmp_path / "model.safetensors.index.json")


def _jax(model: Any, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
    """Weights as the original ViT publishes them: the way back of what is read."""
    state, heads = model.state_dict(), model.blocks[0].attn.num_heads
    found: dict[str, Tensor] = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        width = state[f"{ours}norm1.weight"].numel()
        for number, norm in ((0, "norm1"), (2, "norm2")):
            found[f"{theirs}LayerNorm_{number}/scale"] = state[f"{ours}{norm}.weight"]
            found[f"{theirs}LayerNorm_{number}/bias"] = state[f"{ours}{norm}.bias"]
        for name, kernel, bias in zip(
            ("query", "key", "value"),
            state[f"{ours}attn.qkv.weight"].chunk(3),
            state[f"{ours}attn.qkv.bias"].chunk(3),
            strict=True,
        ):
            found[f"{theirs}MultiHeadDotProductAttention_1/{name}/kernel"] = kernel.T.reshape(width, heads, -1)
            found[f"{theirs}MultiHeadDotProductAttention_1/{name}/bias"] = bias.reshape(heads, -1)
        out = state[f"{ours}attn.proj.weight"].T.reshape(heads, -1, width)
        found[f"{theirs}MultiHeadDotProductAttention_1/out/kernel"] = out
        found[f"{theirs}MultiHeadDotProductAttention_1/out/bias"] = state[f"{ours}attn.proj.bias"]
        for number in (0, 1):
            found[f"{theirs}MlpBlock_3/Dense_{number}/kernel"] = state[f"{ours}mlp.fc{number + 1}.weight"].T
            found[f"{theirs}MlpBlock_3/Dense_{number}/bias"] = state[f"{ours}mlp.fc{number + 1}.bias"]
    return {f"{prefix}{name}": np.ascontiguousarray(value.numpy()) for name, value in found.items()}


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_weights_of_jax_are_read_as_timm_reads_them(prefix: str, tmp_path: Path) -> None:
    sizes = {"img_size": 32, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 3}
    source = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    weights: dict[str, Any] = _jax(source, prefix)
    np.savez(tmp_path / "B_16.npz", **weights)
    images = torch.randn(1, 3, 32, 32)
    if not prefix.startswith("params"):  # there, timm expects big_vision's other numbering of norms
        timms = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
        timms.load_pretrained(str(tmp_path / "B_16.npz"))
        assert torch.equal(timms(images), source(images))
    read = load_vit(str(tmp_path / "B_16.npz"))
    assert torch.equal(read(images), source(images))


def test_a_pickle_of_any_protocol_is_data_only(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "w.pth").write_bytes(pickle.dumps(Calls(exec, "1"), protocol=protocol))
        with pytest.raises(UserError):
            read_state(tmp_path / "w.pth")
