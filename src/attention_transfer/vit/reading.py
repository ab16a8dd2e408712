"""The content of a weights file as plain data and tensors; nothing that a file names is imported or run.

| file | protected by |
|---|---|
| safetensors | the format holds numbers only |
| `.npz` | `allow_pickle=False` |
| PyTorch | `weights_only=True`; where that meets other objects, an unpickler that puts inert stand-ins there |
| PyTorch archive, `.npz` | one that unpacks to many times its size is refused before it is read |
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from attention_transfer.errors import UserError, first_line

log = logging.getLogger("attention_transfer")

INDEX = ".index.json"
"""Ends the name of the list of a folder's several weights files."""

# An archive may unpack to this many bytes, or to this many times its size.
_UNPACKED, _TIMES = 2**30, 20
# Nested dictionaries and entries of a file that are looked through, at most.
_DEPTH, _ENTRIES = 16, 1_000_000
# What tensors are made of; the only names in a pickle that stand for themselves.
_TENSORS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
}
_PATHS = {"PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"}
# What the standard library has for data. Of other packages, names of classes (capital letters) are taken for data.
_DATA = {
    "argparse": {"Namespace"},
    "builtins": {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"),
        *("set", "slice", "str", "tuple"),
    },
    "_codecs": {"encode"},  # of bytes
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "functools": {"partial"},
    "re": {"_compile"},
    "types": {"SimpleNamespace"},
    "typing": {"Any", "Dict", "List", "Optional", "Tuple", "Union"},
    "uuid": {"UUID"},
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
}
_RENAMED = {"__builtin__": "builtins", "commands": "subprocess", "copy_reg": "copyreg"}  # by Python 3


class _Inert(dict[Any, Any]):
    """Stands in a checkpoint for an object of any class: keeps the items of a dictionary, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Attributes hold no weights."""

    def append(self, item: object) -> None:
        """Neither do lists."""

    def extend(self, items: object) -> None:
        """Nor their parts."""

    add = append

    def __hash__(self) -> int:  # type: ignore[override]  # objects are also keys
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def read_content(path: Path) -> Mapping[str, Any]:
    """What a weights file, or the index of several, holds: tensors by name, possibly nested in dictionaries.

    Raises:
        UserError: there is no such file, or it is truncated, of another kind, or holds pickled code.
    """
    if path.name.endswith(INDEX) and path.is_file():
        return {key: value for part in _parts(path) for key, value in _read_one(part).items()}
    return _read_one(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, or the index of several, under their full names in it.

    Raises:
        UserError: as in `read_content`, or there are no tensors.
    """
    return flat_tensors(read_content(path), path)


def flat_tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """All tensors of a file under their full names, through nested dictionaries such as optimiser states' neighbours.

    Raises:
        UserError: there are none, or the dictionaries are nested deeper, or have more entries, than any weights have.
    """
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, Mapping[str, Any], int]] = [("", content, 0)]
    seen = 0
    while waiting:
        prefix, entries, depth = waiting.pop()
        seen += len(entries)
        if depth > _DEPTH or seen > _ENTRIES:
            raise UserError(f"{path} is no file of weights: its dictionaries are too many or too deep")
        for key, value in entries.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, Mapping) and key not in ("optimizer", "scaler", "lr_scheduler"):
                waiting.append((f"{prefix}{key}.", value, depth + 1))
    if not found:
        raise UserError(f"{path} holds no tensors; name a file of model weights")
    return found


def _read_one(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no weights file {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_bomb(path)
        content = _arrays(path) if path.suffix == ".npz" else _unpickled(path)
    except Exception as error:  # damaged bytes make the readers fail in any way; all of them mean the same to the user
        raise UserError(
            f"{path} is not a readable checkpoint (truncated, of another kind, or with pickled code, which is not "
            f"run): {_reason(error)}; download it again or save it as safetensors"
        ) from error
    if isinstance(content, _Inert):
        raise UserError(
            f"{path} holds pickled code, which is not run: one whole object in place of its weights; save "
            "model.state_dict() where its class is at hand"
        )
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no tensors; name a file of model weights")
    return content


def _refuse_bomb(path: Path) -> None:
    """Refuse an archive that would unpack to far more than weights do."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > max(_UNPACKED, _TIMES * path.stat().st_size):
        raise ValueError(f"it unpacks to {size} bytes")


def _arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: _tensor(archive[name]) for name in archive.files if archive[name].dtype.kind in "biufV"}


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype == np.dtype("V2"):  # bfloat16, as JAX saves it
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            file.seek(0)
            return _without_objects(file, path)


def _without_objects(file: BinaryIO, path: Path) -> Any:
    """As `torch.load`, with a stand-in for each object that is no tensor."""
    met: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            module = _RENAMED.get(module, module)
            full = f"{module}.{name}"
            if full in _TENSORS or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
                return super().find_class(module, name)
            if not _is_data(module, name):
                raise pickle.UnpicklingError(f"Unsupported global {full}")
            met.add(full)
            return _Inert

    def load(file: BinaryIO, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    restricted: Any = ModuleType("restricted_pickle")
    restricted.Unpickler, restricted.load = Unpickler, load
    found = torch.load(file, map_location="cpu", weights_only=False, pickle_module=restricted)
    log.debug("%s: left out what is no tensor: %s", path.name, ", ".join(sorted(met)))
    return found


def _is_data(module: str, name: str) -> bool:
    """Whether a name in a pickle is one of data. None is imported; others are refused, because somebody meant harm."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return name in _DATA.get(module, ())
    return top == "numpy" or name[:1].isupper()


def _parts(index: Path) -> list[Path]:
    """The weights files that an index lists."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights files (no weight_map); download it again") from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise UserError(f"{index} lists {outside[0]!r}, which is no file beside it; download it again")
    return [index.parent / name for name in names]


def _reason(error: Exception) -> str:
    """What a reader found, without torch's advice to run the code."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    found = re.search(r"(Unsupported (global|operand|class)|Trying to load unsupported GLOBAL)[^\n]*", text)
    line = found[0].partition(". Please use")[0] if found else (text.splitlines() or [type(error).__name__])[0]
    return line[:160]


def weights_in(folder: Path) -> Path:
    """The weights file of a model's folder, or the index of several."""
    names = ("model.safetensors", "pytorch_model.bin")
    for name in (*names, *(f"{name}{INDEX}" for name in names)):
        if (folder / name).is_file():
            return folder / name
    return folder / "model.safetensors"


def unfit(folder: Path, error: Exception) -> UserError:
    """The error for a folder whose configuration and weights do not belong together, or to their library."""
    return UserError(
        f"{folder} cannot be loaded: its config.json and weights do not fit ({first_line(error)}); export or download "
        "it again"
    )
