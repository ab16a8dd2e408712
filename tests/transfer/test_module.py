from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError, UserErrors
from attention_transfer.transfer import L2SP, AttentionTransfer, Copy, Distill, Guide, LogitKD, Rule
from attention_transfer.transfer.plan import Plan
from attention_transfer.vit import AttentionCall, Pairing, capture, hook_attention, set_drop_path

Build = Callable[..., Any]
Tapped = Callable[[nn.Module], list[str]]
EVERY_KIND = [Copy(layers=[0]), Distill(layers=[1]), Guide(layers=[2], weight=0.5)]


def test_without_rules_it_is_the_student(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    for transfer in (AttentionTransfer(None, student), AttentionTransfer(tiny_vit(1), student)):
        output = transfer(images)
        assert torch.equal(output.logits, student(images))
        assert output.losses == {}
        assert transfer.teacher is None
        assert output.total(torch.tensor(3.0)).item() == 3


def test_total_is_the_task_loss_and_each_weighted_loss(tiny_vit: Build, images: Tensor) -> None:
    rules = [Distill(weight=3.0), Guide(weight=0.25), Distill(weight=0.5, layers=[0])]
    output = AttentionTransfer(tiny_vit(1), tiny_vit(2), rules)(images)
    assert list(output.losses) == ["distill", "guide", "distill_2"]
    assert output.losses["distill_2"] != output.losses["distill"]
    distill, guide, second = (loss.item() for loss in output.losses.values())
    expected = 2.0 + 3.0 * distill + 0.25 * guide + 0.5 * second
    assert output.total(torch.tensor(2.0)).item() == pytest.approx(expected, rel=1e-6)


def test_loss_rules_leave_the_students_logits_alone(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    expected = student(images)
    assert torch.equal(AttentionTransfer(tiny_vit(1), student, [Distill(), Guide()])(images).logits, expected)


def test_rules_of_every_kind_work_together(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    copied = AttentionTransfer(teacher, student, [Copy(layers=[0])])
    expected = copied(images).logits
    copied.release()
    output = AttentionTransfer(teacher, student, EVERY_KIND)(images)
    assert torch.equal(output.logits, expected)
    assert list(output.losses) == ["distill", "guide"]


def test_the_teacher_is_frozen_and_gets_no_gradient(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1).train()
    before = copy.deepcopy(teacher.state_dict())
    transfer = AttentionTransfer(teacher, tiny_vit(2), EVERY_KIND).train()
    optimizer = torch.optim.SGD([*transfer.parameters()], lr=0.1)
    transfer(images).total(torch.zeros(())).backward()
    optimizer.step()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_teacher_stays_in_eval_mode(tiny_vit: Build) -> None:
    teacher = tiny_vit(1, proj_drop_rate=0.5).train()
    transfer = AttentionTransfer(teacher, tiny_vit(2), [Distill()])
    assert not teacher.training
    for parent in (transfer, nn.ModuleList([transfer])):
        parent.train()
        assert transfer.training
        assert transfer.student.training
        assert not any(module.training for module in teacher.modules())
        parent.eval()
        assert not transfer.student.training


def test_a_teacher_put_in_train_mode_from_outside_gives_no_noise_to_the_next_epoch(
    tiny_vit: Build, images: Tensor
) -> None:
    teacher = tiny_vit(1, proj_drop_rate=0.5)
    transfer = AttentionTransfer(teacher, tiny_vit(2), [Distill()])
    teacher.train()
    transfer.train()
    assert transfer(images).losses["distill"].item() == transfer(images).losses["distill"].item()


def test_only_the_student_is_registered(tiny_vit: Build) -> None:
    student = tiny_vit(2)
    transfer = AttentionTransfer(tiny_vit(1), student, EVERY_KIND)
    assert set(transfer.state_dict()) == {f"student.{name}" for name in student.state_dict()}
    assert [*map(id, transfer.parameters())] == [*map(id, student.parameters())]
    # Saving does not differ from that without a transfer.
    assert set(student.state_dict()) == set(tiny_vit(3).state_dict())


def test_the_teacher_moves_along(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, EVERY_KIND)
    single = transfer(images)
    nn.ModuleList([transfer]).to(torch.float64)
    assert {parameter.dtype for model in (teacher, student) for parameter in model.parameters()} == {torch.float64}
    double = transfer(images.double())
    torch.testing.assert_close(double.logits.float(), single.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(double.losses["guide"].float(), single.losses["guide"], atol=1e-4, rtol=1e-4)


def test_the_student_by_itself_is_not_affected(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    expected = student(images)
    transfer = AttentionTransfer(tiny_vit(1), student, EVERY_KIND)
    assert torch.equal(student(images), expected)
    logits = transfer(images).logits
    assert not torch.allclose(logits, expected)
    assert torch.equal(student(images), expected)
    logits.sum().backward()
    assert torch.equal(student(images), expected)


def test_release_leaves_nothing_on_either_model(tiny_vit: Build, images: Tensor, tapped: Tapped) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, EVERY_KIND, share_drop_path=True)
    transfer.train()(images)
    assert tapped(student)
    assert tapped(teacher)
    transfer.release()
    transfer.release()
    assert tapped(student) == tapped(teacher) == []


def test_a_transfer_that_is_dropped_leaves_nothing_either(tiny_vit: Build, images: Tensor, tapped: Tapped) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, EVERY_KIND, share_drop_path=True)
    transfer(images)
    del transfer
    gc.collect()
    assert tapped(student) == tapped(teacher) == []


def test_a_transfer_that_is_dropped_lives_until_its_backward_pass(
    tiny_vit: Build, images: Tensor, tapped: Tapped
) -> None:
    """Checkpointed blocks run again there, and would attend by themselves without what it attached."""
    gradients = []
    for dropped in (False, True):
        teacher, student = tiny_vit(1), tiny_vit(2)
        student.set_grad_checkpointing(True)
        transfer: Any = AttentionTransfer(teacher, student, [Copy()]).train()
        logits = transfer(images).logits
        if dropped:
            del transfer
            gc.collect()
        logits.square().sum().backward()
        gradients.append([p.grad for p in student.parameters()])
        del logits
        gc.collect()
        assert (tapped(student) == []) == dropped
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_after_a_backward_pass_nothing_of_the_step_is_kept(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [Distill()]).train()
    with capture(transfer.student) as calls:
        output = transfer(images)
    queries = weakref.ref(calls[0].q)
    output.total(output.logits.sum()).backward()
    del output
    calls.clear()
    gc.collect()
    assert queries() is None


def test_a_deep_copy_shares_the_teacher_and_has_a_student_of_its_own(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), EVERY_KIND)
    expected = transfer(images)
    twin = copy.deepcopy(transfer)
    assert twin.teacher is transfer.teacher
    actual = twin(images)
    assert torch.equal(actual.logits, expected.logits)
    assert actual.losses == expected.losses
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    assert torch.equal(transfer(images).logits, expected.logits)
    assert not torch.equal(twin(images).logits, expected.logits)
    twin.release()
    assert torch.equal(transfer(images).logits, expected.logits)


@pytest.mark.parametrize("training", [False, True])
def test_a_deep_copy_keeps_the_mode(training: bool, tiny_vit: Build) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [Copy()]).train(training)
    twin = copy.deepcopy(transfer)
    assert (twin.training, twin.student.training) == (training, training)


def test_teacher_and_student_drop_the_same_branches_only_where_asked(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1)
    for share in (True, False):
        student = copy.deepcopy(teacher).requires_grad_(True)
        set_drop_path(student, 0.5)
        transfer = AttentionTransfer(teacher, student, [Guide()], share_drop_path=share).train()
        losses = [transfer(images).losses["guide"].item() for _ in range(3)]
        # With the same weights and the same branches, the two attend alike.
        assert (max(losses) < 1e-8) is share
        output = transfer.eval()(images)
        assert output.losses["guide"].item() == 0
        assert torch.equal(output.logits, student(images))  # nothing is dropped in evaluation
        transfer.release()


@pytest.mark.parametrize("order", ["step", "step step", "step alone", "alone step"])
def test_under_checkpointing_each_forward_keeps_its_own_drop_path_masks(
    order: str, tiny_vit: Build, images: Tensor
) -> None:
    """The backward pass runs the blocks again: of a step with its shared masks, of the student alone without."""
    results = []
    for checkpointing in (False, True):
        student = tiny_vit(2, drop_path_rate=0.5)
        student.set_grad_checkpointing(checkpointing)
        transfer = AttentionTransfer(tiny_vit(1), student, [Distill()], share_drop_path=True).train()
        torch.manual_seed(3)
        logits = [transfer(images).logits if kind == "step" else student(images) for kind in order.split()]
        torch.cat(logits).square().sum().backward()
        results.append([*(x.detach() for x in logits), *(parameter.grad for parameter in student.parameters())])
    torch.testing.assert_close(results[1], results[0])


def test_losses_without_the_logits_have_the_same_gradients_under_checkpointing(tiny_vit: Build, images: Tensor) -> None:
    """As for somebody who looks at the gradient of each loss apart."""
    results = []
    for checkpointing in (False, True):
        student = tiny_vit(2)
        student.set_grad_checkpointing(checkpointing)
        transfer = AttentionTransfer(tiny_vit(1), student, [Copy(layers=[0]), Distill(layers=[2])]).train()
        first, second = transfer(images), transfer(images + 1)
        (first.losses["distill"] - 2 * second.losses["distill"]).backward()
        results.append(student.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(results[1], results[0])


def test_every_reason_why_a_pair_does_not_fit_is_listed(tiny_vit: Build) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2, depth=2, num_heads=4)
    with pytest.raises(UserErrors) as caught:
        AttentionTransfer(teacher, student, [Distill(layers=[2]), Copy(heads=[5])])
    message = str(caught.value)
    assert "heads 3 but the student has 4" in message
    assert "Distill.layers [2] do not exist; choose from -2 to 1" in message
    assert "Copy.heads [5] do not exist; choose from -4 to 3" in message
    assert len(message.splitlines()) == len(caught.value.messages) >= 3


def test_a_refused_pair_is_left_as_it_was(tiny_vit: Build, tapped: Tapped) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2, num_heads=4)
    with pytest.raises(UserError, match="heads 3 but the student has 4"):
        AttentionTransfer(teacher, student, [Copy()])
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert tapped(student) == []


def test_rules_need_a_teacher_that_is_another_object(tiny_vit: Build) -> None:
    model = tiny_vit()
    with pytest.raises(UserError, match="Distill, Copy needs a teacher"):
        AttentionTransfer(None, model, [Distill(), Copy()])
    with pytest.raises(UserError, match="the same object"):
        AttentionTransfer(model, model, [Distill()])
    with pytest.raises(UserError, match="share_drop_path and pairing need rules"):
        AttentionTransfer(None, model, share_drop_path=True)
    with pytest.raises(UserError, match="no supported attention"):
        AttentionTransfer(nn.Linear(2, 2), model, [Distill()])


def test_a_loss_on_copied_attention_is_refused_and_on_other_layers_or_heads_is_not(tiny_vit: Any) -> None:
    teacher, student = tiny_vit(), tiny_vit(seed=1)
    with pytest.raises(UserError, match=r"Copy and Distill both bind layers \[1\]"):
        AttentionTransfer(teacher, student, [Copy(layers=[0, 1]), Distill(layers=[1, 2])])
    AttentionTransfer(teacher, student, [Copy(layers=[0, 1]), Distill(layers=[2])])
    AttentionTransfer(teacher, student, [Copy(heads=[0]), Distill(heads=[1, 2])])
    AttentionTransfer(teacher, student, [Copy(parts="v"), Distill()])


def test_a_released_module_says_so(tiny_vit: Any, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(), tiny_vit(seed=1), [Copy()])
    transfer.release()
    with pytest.raises(RuntimeError, match="was released"):
        transfer(images)


def test_teachers_attention_is_let_go_once_it_is_used(
    tiny_vit: Build, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Tensor]] = []
    kept = Plan.kept

    def noting(plan: Plan, call: AttentionCall) -> AttentionCall:
        seen.append(weakref.ref(call.q))
        return kept(plan, call)

    monkeypatch.setattr(Plan, "kept", noting)
    for rule in (Distill(), Guide()):
        seen.clear()
        transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [rule]).train()
        output = transfer(images)
        assert len(seen) > 1
        assert [reference() for reference in seen] == [None] * len(seen)
        output.total(output.logits.sum()).backward()


@pytest.mark.parametrize(
    ("rules", "pairing"),
    [
        ([Copy(layers=[0])], None),
        ([Distill(layers=[1]), Guide(layers=[0])], None),
        ([Distill(layers=[0])], Pairing(layers=[2, 0, 1])),
        ([Distill(layers=[0]), LogitKD()], None),
        ([L2SP()], None),
        ([], None),
    ],
)
def test_the_depth_of_the_teacher_is_that_of_the_blocks_that_run(
    tiny_vit: Build, images: Tensor, rules: list[Rule], pairing: Pairing | None
) -> None:
    teacher = tiny_vit(1)
    ran = []
    for block in teacher.blocks:
        block.register_forward_pre_hook(lambda block, _: ran.append(block))
    transfer = AttentionTransfer(teacher, tiny_vit(2), rules, pairing=pairing)
    transfer(images)
    assert transfer.teacher_depth == len(ran)
    assert transfer.pairing == (pairing or Pairing())


def test_what_is_attached_beside_the_rules_goes_with_them(tiny_vit: Build, images: Tensor, tapped: Tapped) -> None:
    student, heard = tiny_vit(2), []

    def hear(call: AttentionCall) -> AttentionCall:
        heard.append(call.layer)
        return call

    transfer = AttentionTransfer(tiny_vit(1), student, [Copy()])
    transfer.attach(hook_attention(student, {1: hear}))
    transfer(images)
    transfer.release()
    student(images)
    assert heard == [1]
    assert tapped(student) == []


def test_how_losses_are_computed_is_logged_once(
    tiny_vit: Build, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="attention_transfer")
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [Distill(layers=1)]).train()
    with torch.no_grad():  # where there is nothing to learn, it is computed otherwise
        transfer(images)
    for _ in range(2):
        transfer(images)
    said = [record.message for record in caplog.records if "distill" in record.message]
    assert len(said) == 1
    assert "attention and loss in one, flash (" in said[0]
