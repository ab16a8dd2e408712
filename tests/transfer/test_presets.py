from __future__ import annotations

import pytest

from attention_transfer.errors import UserError
from attention_transfer.transfer import PRESETS, Copy, Distill, Guide, preset


def test_the_methods_are_these() -> None:
    papers = {name: (PRESETS[name].init, PRESETS[name].rules) for name in list(PRESETS)[:5]}
    assert papers == {
        "scratch": ("random", ()),
        "finetune": ("teacher", ()),
        "copy": ("random", (Copy(parts="qk", layers=None, heads=None),)),
        "distill": ("random", (Distill(weight=3.0, layers=None, heads=None),)),
        "gta": ("teacher", (Guide(weight=0.03, layers=None, heads=None),)),
    }


def test_published_methods_name_their_source_and_all_have_a_summary() -> None:
    assert all(method.summary for method in PRESETS.values())
    without = {"scratch", "finetune", "linear-probe", "qkv-only", "attention-init"}
    assert {name for name, method in PRESETS.items() if not method.source} == without


def test_a_method_is_found_by_name() -> None:
    assert preset("gta") is PRESETS["gta"]


def test_an_unknown_name_is_refused_with_the_nearest_or_with_all() -> None:
    with pytest.raises(UserError, match="no preset 'distil'; did you mean 'distill'"):
        preset("distil")
    with pytest.raises(UserError, match=r"choose one of: .*copy, .*distill, .*scratch"):
        preset("xyz")
