from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from attention_transfer.errors import UserError, UserErrors
from attention_transfer.vit import check_transfer, student_like

Build = Callable[..., Any]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"])
def test_a_student_made_for_its_teacher_fits_without_a_word(name: str, tiny_vit: Build) -> None:
    teacher = tiny_vit(name=name)
    report = check_transfer(teacher, student_like(teacher, num_classes=7))
    assert (report.problems, report.warnings) == ((), ())
    report.raise_problems()


def test_every_difference_that_forbids_a_transfer_is_listed_at_once(tiny_vit: Build) -> None:
    teacher = tiny_vit(depth=3, num_heads=3)
    student = tiny_vit(depth=2, num_heads=4, img_size=16, in_chans=3)
    report = check_transfer(teacher, student)
    for difference in ("depth 3 .* has 2", "heads 3 .* has 4", r"grid \(2, 2\) .* has \(4, 4\)", "channels 1 .* has 3"):
        with pytest.raises(UserErrors, match=difference):
            report.raise_problems()
    assert len(report.problems) == 5  # the input size, too
    assert all("student_like" in problem for problem in report.problems)


def test_a_component_the_student_lacks_is_a_warning_and_not_the_other_way_round(tiny_vit: Build) -> None:
    plain, scaled = tiny_vit(), tiny_vit(init_values=1e-5)
    report = check_transfer(scaled, plain)
    assert report.problems == ()
    assert [warning for warning in report.warnings if "LayerScale" in warning] == list(report.warnings)
    assert len(report.warnings) == 1
    assert check_transfer(plain, scaled).warnings == ()


def test_another_number_of_prefix_tokens_is_a_problem(tiny_vit: Build) -> None:
    report = check_transfer(tiny_vit(name="vit_small_patch14_reg4_dinov2"), tiny_vit(init_values=1e-5))
    assert len(report.problems) == 1
    assert "prefix tokens 5 but the student has 1" in report.problems[0]


def test_other_input_normalisation_is_a_warning(tiny_vit: Build) -> None:
    other = tiny_vit(pretrained_cfg_overlay={"mean": (0.1,)})
    assert ["normalisation" in warning for warning in check_transfer(tiny_vit(), other).warnings] == [True]


def test_another_width_is_no_hindrance(tiny_vit: Build) -> None:
    report = check_transfer(tiny_vit(embed_dim=48), tiny_vit())
    assert (report.problems, report.warnings) == ((), ())


def test_what_is_no_vit_is_refused(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match="no supported attention"):
        check_transfer(tiny_vit(), nn.Linear(2, 2))
