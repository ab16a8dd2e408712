"""What `import attention_transfer` gives, and what it loads."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import attention_transfer
from attention_transfer.verbs import EXTRAS


def test_every_public_name_is_there() -> None:
    for name in attention_transfer.__all__:
        assert getattr(attention_transfer, name) is not None
    assert len(set(attention_transfer.__all__)) == len(attention_transfer.__all__)


def test_the_library_loads_torch_and_timm_only() -> None:
    code = """
import sys, torch, timm
before = set(sys.modules)
import attention_transfer as at
model = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=2)
student = at.student_like(model, num_classes=3)
transfer = at.AttentionTransfer(model, student, [at.Distill()])
transfer(torch.randn(2, 3, 8, 8))
heavy = {"lightning", "sklearn", "scipy", "matplotlib", "rich", "jinja2", "yaml"}
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} & heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_the_library_load_torch_alone() -> None:
    code = """
import sys, torch
from attention_transfer import AttentionTransfer, Copy, Distill, Guide, attention_kl, capture, describe, load_vit
print(sorted({"timm", "torchvision", "transformers", "triton", "torch._dynamo"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(attention_transfer, "no_such_thing")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("presets", 0),
        ("train --help", 0),
        ("predict --help", 0),
        ("train --presett copy --recipe.lr fast", 2),
        ("trian", 2),
        ("train --config recipe:gta/cub-15 --rules null --print_config", 0),
    ],
)
def test_help_presets_and_mistakes_load_nothing_heavy(words: str, code: int) -> None:
    played = f"""
import sys
sys.argv = {["attention-transfer", *words.split()]!r}
from attention_transfer import cli
try:
    cli.main()
finally:
    print(sorted({{"torch", "timm", "numpy", "rich", "lightning", "scipy"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", played], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, "[]")


def test_a_verb_whose_packages_are_missing_names_the_command_that_brings_them(tmp_path: Path) -> None:
    """The packages are hidden; what needs none of them works."""
    played = """
import sys
from importlib.machinery import PathFinder
from attention_transfer.verbs import EXTRAS

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in EXTRAS["train"] else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
from attention_transfer import cli
cli.run(["doctor", "builtin/vit_digits"])
cli.main()
"""
    words = ["train", "--preset", "scratch", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", played, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the student fits its teacher in everything" in done.stdout
    assert done.stderr.splitlines()[-1] == (
        "error: train needs packages that are not installed "
        "(tensorboard, sklearn, matplotlib, jinja2); "
        'run: pip install "attention-transfer[train]"'
    )


def test_what_runs_no_study_needs_no_optuna(tmp_path: Path) -> None:
    """Where PyTorch and the usual packages are, a network can be trained; a comparison says what it wants."""
    played = """
import sys
sys.modules["optuna"] = None
from importlib import util
found = util.find_spec
util.find_spec = lambda name, *rest: None if name == "optuna" else found(name, *rest)
from attention_transfer import cli
cli.run([*sys.argv[1:], "--recipe.epochs", "1", "--recipe.workers", "0"])
sys.argv[1:] = ["compare"]
cli.main()
"""
    words = ["train", "--preset", "scratch", "--shots", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", played, *words], capture_output=True, text=True, check=False)
    assert (tmp_path / "run" / "summary.json").is_file(), done.stderr
    assert done.returncode == 2
    assert "compare needs packages that are not installed (optuna)" in done.stderr.splitlines()[-1]


def test_extras_bring_what_verbs_need() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    names = {"sklearn": "scikit-learn"}
    own = {
        extra: {line.partition(">")[0] for line in lines} for extra, lines in project["optional-dependencies"].items()
    }
    for extra, packages in EXTRAS.items():
        brought = own[extra] | (own["train"] if "attention-transfer[train]" in own[extra] else set())
        brought -= {"attention-transfer[train]"}
        assert {names.get(package, package) for package in packages} == brought
