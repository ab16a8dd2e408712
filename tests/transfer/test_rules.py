"""Rules by name. Those of other packages are in `tests/extending`."""

from __future__ import annotations

import subprocess
import sys

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


def test_the_names_cost_no_torch() -> None:
    code = "import sys; from attention_transfer.transfer import rules; rules.names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
