from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attention_transfer import doctor
from attention_transfer.errors import UserError
from attention_transfer.vit import Pairing, save_vit

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
