from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attention_transfer import doctor, load_vit
from attention_transfer.data import digits
from attention_transfer.errors import UserError
from attention_transfer.evaluation import LayerProfile, attention_profile
from attention_transfer.evaluation.artefacts import findings_of
from attention_transfer.evaluation.subjects import spread
from attention_transfer.vit import Pairing, describe, save_vit

Build = Callable[..., Any]


@pytest.fixture
def registers(tiny_vit: Build, tmp_path: Path) -> str:
    save_vit(tiny_vit(name="vit_small_patch14_reg4_dinov2", depth=4), tmp_path / "teacher")
    return str(tmp_path / "teacher")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_the_student_that_is_made_for_a_teacher_fits(registers: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = doctor(registers)
    assert report.differences == ()
    text = said(capsys)
    assert "the student fits its teacher in everything" in text
    assert "class, 4 × register" in text
    assert "LayerScale" in text


def test_networks_are_called_what_they_were_asked_for_as(capsys: pytest.CaptureFixture[str]) -> None:
    doctor("builtin/vit_digits", "standard")
    title = said(capsys).partition("library")[0]
    assert "teacher builtin/vit_digits" in title
    assert "student standard" in title
    assert "vit_tiny" not in title  # which is whose shape timm gives it


def test_a_plain_student_is_told_what_it_lacks_and_what_to_do(
    registers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = doctor(registers, "standard")
    assert report.student.components == frozenset()
    assert "harms: the student lacks the teacher's LayerScale, registers" in (text := said(capsys))
    assert "make the student with student_like(teacher" in text
    assert "mapped: prefix tokens class, 4 × register become class" in text


def test_a_pair_that_does_not_fit_is_told_why_and_how_to_pair_it(
    registers: str, tiny_vit: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(tiny_vit(num_heads=4, init_values=0.1), tmp_path / "student")
    assert len(doctor(registers, str(tmp_path / "student")).problems) == 1
    assert 'has heads 3 but the student has 4; pair them by heads="mean"' in said(capsys)
    assert doctor(registers, str(tmp_path / "student"), pairing=Pairing(heads="match")).problems == ()


def test_what_cannot_be_made_is_refused(registers: str) -> None:
    with pytest.raises(UserError, match="not found"):
        doctor(registers, "nowhere/at/all")


def profile(layer: int, **figures: float) -> LayerProfile:
    plain = {"entropy": 1.0, "patches_95": 9.0, "distance": 2.0, "diversity": 0.1}
    measured = {"prefix_mass": 0.05, "sink_mass": 0.0, "sinks": 0.0, "high_norm": 0.0}
    return LayerProfile(layer, **{**plain, **measured, **figures})


def test_what_figures_mean(tiny_vit: Build) -> None:
    spec = describe(tiny_vit(img_size=40))  # 100 patches
    plain, clean = profile(0), findings_of([profile(0)], spec)
    assert [each.effect for each in clean] == ["fine"]
    (bad,) = findings_of([plain, profile(1, high_norm=0.02, sink_mass=0.3)], spec)
    assert bad.effect == "harms"
    assert "from block 1 on, up to 2.0 patches an image" in bad.message
    assert "sinks get 30 % of the attention in block 1" in bad.message
    assert 'layers="first 1"' in bad.message
    (little,) = findings_of([plain, profile(1, high_norm=0.02, sink_mass=0.05)], spec)
    assert little.effect == "note"
    (rare,) = findings_of([plain, profile(1, high_norm=0.002)], spec)
    assert rare.effect == "fine"
    (sinks,) = findings_of([profile(0, sink_mass=0.4, sinks=1.5)], spec)
    assert "in block 0 1.5 patches an image get 40 %" in sinks.message
    (token,) = findings_of([profile(0, prefix_mass=0.6)], spec)
    assert "the class token is the sink" in token.message
    registers = describe(tiny_vit(img_size=40, reg_tokens=4))
    (given,) = findings_of([profile(0, prefix_mass=0.3)], registers)
    assert given.effect == "harms"
    assert "the 5 tokens before the patches, 4 of them registers" in given.message


def test_it_looks_at_images(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = doctor(teacher, pretrained=True, data="digits", limit=5)
    assert report.attention is not None
    direct = attention_profile(load_vit(teacher), digits().test.take(spread(450, 5)).images)
    assert (report.attention.images, report.attention.blocks) == (5, direct)
    text = said(capsys)
    assert "attention on 5 images" in text
    assert report.attention.findings[0].message.split(":")[0] in text
    assert doctor(teacher).attention is None


def test_images_need_weights(teacher: str) -> None:
    with pytest.raises(UserError) as error:
        doctor(teacher, data="digits", limit=0)
    assert str(error.value).splitlines() == [
        "limit is 0; give at least 1 image",
        "data is looked at with the teacher's weights; add --pretrained true, or name a weights file",
    ]
