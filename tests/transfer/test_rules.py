"""Rules by name. Those of other packages are in `tests/extending`."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from attention_transfer import transfer
from attention_transfer.errors import UserError
from attention_transfer.transfer import rules


def test_every_rule_of_this_package_is_found_by_its_name() -> None:
    assert rules.names() == ["Copy", "Distill", "Guide", "LogitKD", "FeatureKD", "L2SP", "BSS"]
    for name in rules.names():
        assert rules.find(name) is getattr(transfer, name)


def test_a_rule_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="there is no rule 'Distil'; did you mean 'Distill'"):
        rules.find("Distil")


@pytest.mark.parametrize("value", ["collections:OrderedDict", "math:pi"], ids=["a class", "a number"])
def test_what_another_package_registers_as_a_rule_and_is_none_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("Odd", value, rules.GROUP)
    monkeypatch.setattr(rules, "_registered", lambda: {"Odd": entry})
    assert rules.names()[-1] == "Odd"
    with pytest.raises(UserError, match=r"the entry point 'Odd' of attention_transfer\.rules is no rule; derive it"):
        rules.find("Odd")


def test_the_names_cost_no_torch() -> None:
    code = "import sys; from attention_transfer.transfer import rules; rules.names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
