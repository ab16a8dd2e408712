from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from attention_transfer.errors import UserError, UserErrors
from attention_transfer.vit import Pairing, check_transfer, student_like

Build = Callable[..., Any]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"])
def test_a_student_made_for_its_teacher_fits_without_a_word(name: str, tiny_vit: Build) -> None:
    teacher = tiny_vit(name=name)
    report = check_transfer(teacher, student_like(teacher, num_classes=7))
    assert (report.problems, report.warnings) == ((), ())
    report.raise_problems()


def test_every_difference_that_forbids_a_transfer_is_listed_at_once(tiny_vit: Build) -> None:
    teacher = tiny_vit(depth=3, num_heads=3)
    student = tiny_vit(num_heads=4, in_chans=3, reg_tokens=2)
    report = check_transfer(teacher, student)
    for difference in ("heads 3 .* has 4", "class, 2 × register", "channels 1 .* has 3"):
        with pytest.raises(UserErrors, match=difference):
            report.raise_problems()
    assert len(report.problems) == 3
    assert all("student_like" in problem for problem in report.problems)


def test_what_can_be_mapped_is_a_note_that_says_how(tiny_vit: Build) -> None:
    teacher = tiny_vit(name="vit_small_patch14_reg4_dinov2", depth=4, img_size=16)
    report = check_transfer(teacher, tiny_vit(depth=2, init_values=1.0), pairing=Pairing(layers="last"))
    assert report.problems == ()
    for difference in ("2 blocks take .* of 4, paired by 'last'", "4×4 patches are resampled to 2×2", "16×16 for the"):
        assert any(re.search(difference, note) for note in report.notes)


def test_a_component_the_student_lacks_is_a_warning_and_not_the_other_way_round(tiny_vit: Build) -> None:
    plain, scaled = tiny_vit(), tiny_vit(init_values=1e-5)
    report = check_transfer(scaled, plain)
    assert report.problems == ()
    assert [warning for warning in report.warnings if "LayerScale" in warning] == list(report.warnings)
    assert len(report.warnings) == 1
    assert check_transfer(plain, scaled).warnings == ()


def test_registers_that_the_student_lacks_are_mapped_and_known_to_matter(tiny_vit: Build) -> None:
    report = check_transfer(tiny_vit(name="vit_small_patch14_reg4_dinov2"), tiny_vit(init_values=1e-5))
    assert report.problems == ()
    assert any("class, 4 × register become class: rows are renormalised" in note for note in report.notes)
    assert any("lacks the teacher's registers" in warning for warning in report.warnings)


def test_other_input_normalisation_is_noted(tiny_vit: Build) -> None:
    other = tiny_vit(pretrained_cfg_overlay={"mean": (0.1,)})
    assert ["normalisation" in note for note in check_transfer(tiny_vit(), other).notes] == [True]


def test_another_width_is_no_hindrance(tiny_vit: Build) -> None:
    report = check_transfer(tiny_vit(embed_dim=48), tiny_vit())
    assert (report.problems, report.warnings) == ((), ())


def test_what_is_no_vit_is_refused(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match="no supported attention"):
        check_transfer(tiny_vit(), nn.Linear(2, 2))
