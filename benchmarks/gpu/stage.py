"""Runs stages of the kit in one process: `python -m benchmarks.gpu.stage NAME [NAME ...] --out FOLDER [--rehearse]`.

`run.sh` gives each stage a process and a time limit; a rehearsal runs several in one, which spares the imports.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

STAGES = {"right": "a", "steps": "b", "kernels": "c", "training": "d", "precision": "e"}


def main() -> None:
    """Exit with 2 where nothing can be measured, with 1 where a stage did not come to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600.0, help="no row begins after that, for each stage")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--warm", action="store_true", help="compile what a stage will time, and no more")
    parser.add_argument("--release", type=Path, help="local clone of the released code of Attention Transfer")
    arguments = parser.parse_args()
    missing = unmet()
    if missing:
        print(f"{'; '.join(missing)}; make their wheels with benchmarks/gpu/wheels.sh", file=sys.stderr)
        sys.exit(2)
    from attention_transfer.errors import UserError

    try:
        if arguments.warm:
            for name in arguments.names:
                warm(name)
            return
        if arguments.release is not None:
            importlib.import_module("benchmarks.gpu.training").check_release(arguments.release)
        whole = min([run(name, arguments) for name in arguments.names])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(not whole)


def warm(name: str) -> None:
    """Fill the caches of Inductor and Triton for a stage.

    Here, since Inductor's can't be read where the program that wrote them has a global `torch`, and the reader has not.
    """
    from benchmarks.gpu import card

    importlib.import_module(f"benchmarks.gpu.{name}").warm(card.find(rehearse=False))


def unmet() -> list[str]:
    """What this package needs and this machine lacks, a phrase each."""
    found = []
    try:
        needs = [Requirement(line) for line in requires("attention-transfer") or []]
    except PackageNotFoundError:
        return ["attention-transfer itself is not installed"]
    for need in needs:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(need.name)
        except PackageNotFoundError:
            found.append(f"{need} is missing")
            continue
        if not need.specifier.contains(there, prereleases=True):
            found.append(f"{need} is needed, and {there} is installed")
    return found


def run(name: str, arguments: argparse.Namespace) -> bool:
    """One stage; whether it came to its end."""
    from benchmarks.gpu import card
    from benchmarks.gpu.report import Report

    found = card.find(rehearse=arguments.rehearse)
    stage = importlib.import_module(f"benchmarks.gpu.{name}")
    settings = {"release": arguments.release} if name == "training" else {}
    report = Report(arguments.out / f"{STAGES[name]}-{name}.json", name, found, arguments.seconds)
    print(f"stage {STAGES[name]}, {name}", flush=True)
    try:
        stage.run(found, report, **settings)
    except Exception as error:  # noqa: BLE001 - it is in the report, and the next stage begins
        traceback.print_exc()
        report.close(error)
        return False
    report.close()
    return True


if __name__ == "__main__":
    main()
