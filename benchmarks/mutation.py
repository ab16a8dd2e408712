"""Mutation score: of small wrong changes to the source, the share that a test notices.

    python -m benchmarks.mutation OUT                     a sample of mutants of attention/ and transfer/
    python -m benchmarks.mutation OUT --again survived    those that survived, after a change of the tests

A first run notes in `OUT/tests.json` which tests run which lines (by coverage.py): not those that are slow, and of a
test with many cases only `--cases`. Each mutant then meets the tests that run its line, the cheapest first, up to
`--budget` seconds of the processor; so a score is a lower bound. It is put into the functions of a fork of a process
that has collected all tests; what runs at import, in a fork of one that has loaded other libraries only.
`OUT/mutants.jsonl` gets a row for each, and a run that was stopped goes on. Survivors meet further tests, new or slow,
by `--again survived --observe tests/attention/test_mean.py`.

Left out: `attention/triton_*.py`, whose tests take hours under Triton's interpreter; annotations, assertions,
imports, decorators, f-strings, and strings of several words, which are messages. The source that is changed is a copy.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import inspect
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from benchmarks.mutants import Mutant, mutants_of

PACKAGE = "src/attention_transfer"
ROOMS = ("attention", "transfer")
LEFT_OUT = ("attention/triton_kernels.py", "attention/triton_launch.py", "attention/triton_programs.py")
TESTS = ("tests/attention", "tests/transfer")
NOT_RUN = (  # too slow
    *("tests/attention/test_triton.py", "tests/attention/test_memory.py"),
    *("tests/transfer/test_compiled.py", "tests/transfer/test_hugging_face.py"),
)
SLOW = ("gradcheck", "hypothesis", "compile(", "_dynamo", "subprocess")  # in the source of tests
LOADED = ("torch._dynamo", "timm", "torchvision", "transformers", "hypothesis.extra.numpy", "scipy.stats")
MEMORY = 6 << 30  # bytes that a mutant may take
GRACE = 60  # seconds that a mutant has beside those of its tests, which may take longer on a busy machine
NOT_PUT_IN = 71
BROKEN = 70  # the status of a child in which pytest itself did not run

Functions = dict[tuple[str, str], list[FunctionType]]
Known = dict[str, dict[str, Any]]  # by test: its seconds, and the lines that it runs by file


class Workplace:
    """A copy of the source, in which one file at a time is changed.

    Args:
        root: the project, in which tests are run.
        out: the folder of results, which also gets what a mutant's tests print.
    """

    def __init__(self, root: Path, out: Path) -> None:
        self.out, self.copy, self.output = out.resolve(), out.resolve() / "copy", out.resolve() / "output.txt"
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(root / PACKAGE, self.copy / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))

    @contextlib.contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """The copy has the mutant inside the block."""
        path = self.copy / mutant.file
        source = path.read_bytes()
        path.write_bytes(mutant.applied(source))
        try:
            yield
        finally:
            path.write_bytes(source)

    def forked(self, work: Callable[[], int], seconds: float | None = None) -> int | None:
        """The exit status of a child that sees the copy; `None` where it took longer. With a limit it is quiet."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                self._enter(quiet=seconds is not None)
                code = work()
            except BaseException:  # noqa: BLE001 - it must not go on as a second parent
                traceback.print_exc()
                code = BROKEN
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        until = time.monotonic() + (math.inf if seconds is None else seconds)
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _enter(self, *, quiet: bool) -> None:
        if quiet:
            os.setsid()
            with self.output.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        source = str((self.copy / PACKAGE).parent)
        sys.path.insert(0, source)
        os.environ["PYTHONPATH"] = source
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutant can be as long and as old as what it replaces
        sys.dont_write_bytecode = True


class Observer:
    """A plugin of pytest that notes what each test takes and which lines it runs."""

    def __init__(self, measured: Any) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = {}
        self.passed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """The lines from here on are of this test."""
        self.measured.switch_context(nodeid)
        self.seconds[nodeid] = -time.process_time()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note whether it passed."""
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note the processor's seconds."""
        self.seconds[nodeid] += time.process_time()


class Stopper:
    """A plugin of pytest that ends the process at the first test that fails."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Say which."""
        if report.failed:
            print(f"\nFAILED {report.nodeid}", flush=True)
            os._exit(1)


class Collected:
    """A plugin of pytest that hands over the tests that are collected, in the place of running them."""

    def __init__(self, work: Callable[[pytest.Session], None]) -> None:
        self.work = work

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Do the work."""
        self.work(session)
        return True


def arguments(*tests: str) -> list[str]:
    """What pytest is called with."""
    return ["-q", "-p", "no:cacheprovider", *tests]


def cheap(items: Sequence[pytest.Item], cases: int) -> list[str]:
    """The names of tests that take moments, and of each that has many cases some that lie apart."""
    groups: dict[tuple[Path, str], list[pytest.Function]] = {}
    for item in items:
        assert isinstance(item, pytest.Function)
        groups.setdefault((item.path, item.originalname), []).append(item)
    names = []
    for group in groups.values():
        source = inspect.getsource(group[0].obj)
        if not any(word in source for word in SLOW):
            count = min(cases, len(group))
            names += [group[i * (len(group) - 1) // max(1, count - 1)].nodeid for i in range(count)]
    return names


def run_tests(session: pytest.Session, names: Sequence[str], plugin: object) -> int:
    """Run some of the collected tests, in the order of their names."""
    session.config.pluginmanager.register(plugin)
    known = {item.nodeid: item for item in session.items}
    items = [known[name] for name in names]
    for item, following in zip(items, [*items[1:], None], strict=True):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return 0


def observe(place: Workplace, session: pytest.Session, names: Sequence[str]) -> Known:
    """Run tests on the unchanged copy; those that pass, with their seconds and lines."""
    target = place.out / "observed.json"

    def work() -> int:
        coverage: Any = importlib.import_module("coverage")  # the one thing that it is needed for
        include = [f"{place.copy}/{PACKAGE}/{room}/*" for room in ROOMS]
        measured = coverage.Coverage(data_file=None, config_file=False, include=include)
        observer = Observer(measured)
        measured.start()
        run_tests(session, names, observer)
        measured.stop()
        data, known = measured.get_data(), Known()
        for test in sorted(observer.passed):
            known[test] = {"seconds": round(observer.seconds[test], 3), "lines": {}}
        for path in sorted(data.measured_files()):
            for line, contexts in data.contexts_by_lineno(path).items():
                for test in known.keys() & contexts:
                    known[test]["lines"].setdefault(str(Path(path).relative_to(place.copy)), []).append(line)
        target.write_text(json.dumps(known))
        return 0

    if place.forked(work, 7200) != 0:
        raise SystemExit(f"the tests can't be observed, see {place.output}")
    found: Known = json.loads(target.read_text())
    return found


def loaded_functions(folder: Path) -> Functions:
    """The functions whose code lies in a folder, by file and qualified name."""
    found: Functions = {}
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename.startswith(f"{folder}/"):
            found.setdefault((one.__code__.co_filename, one.__code__.co_qualname), []).append(one)
    return found


def put_in(mutant: Mutant, path: Path, functions: Functions) -> bool:
    """Give the functions that are loaded the mutant's code; whether that can be done."""
    codes: dict[tuple[str, int], CodeType] = {}
    open_ends = [compile(path.read_bytes(), str(path), "exec", dont_inherit=True)]
    while open_ends:
        inner = [x for x in open_ends.pop().co_consts if isinstance(x, CodeType)]
        open_ends += inner
        codes |= {(code.co_qualname, code.co_firstlineno): code for code in inner}
    mine = functions.get((str(path), mutant.function), [])
    try:
        for function in mine:
            function.__code__ = codes[mutant.function, function.__code__.co_firstlineno]
    except ValueError:  # another number of variables from outside: `super()` is gone
        return False
    return bool(mine)


def chosen_tests(known: Known, mutant: Mutant, budget: float) -> tuple[list[str], float]:
    """The tests that run a mutant's lines, the cheapest first, and their seconds."""
    wanted, chosen, total = range(mutant.first, mutant.last + 1), list[str](), 0.0
    for test in sorted(known, key=lambda name: (known[name]["seconds"], name)):
        if any(line in wanted for line in known[test]["lines"].get(mutant.file, ())):
            chosen.append(test)
            total += known[test]["seconds"]
            if total > budget:
                break
    return chosen, total


def judge(
    place: Workplace,
    mutant: Mutant,
    known: Known,
    budget: float,
    session: pytest.Session | None,
    functions: Functions,
) -> dict[str, Any] | None:
    """Whether a test notices the mutant, as a row; `None` where it can't be put into what is loaded."""
    start = time.monotonic()
    tests, seconds = chosen_tests(known, mutant, budget)
    if not tests:
        return {**mutant.row(), "outcome": "no test", "tests": 0}

    def work() -> int:
        if session is None:
            return int(pytest.main([*arguments(*tests), "-x"]))
        if not put_in(mutant, place.copy / mutant.file, functions):
            return NOT_PUT_IN
        return run_tests(session, tests, Stopper())

    with place.changed(mutant):
        code = place.forked(work, GRACE + 20 * seconds)
    if code == NOT_PUT_IN:
        return None
    if code == BROKEN:
        raise SystemExit(f"pytest did not run, see {place.output}")
    outcome = {0: "survived", None: "timeout"}.get(code, "killed")
    row = {**mutant.row(), "outcome": outcome, "tests": len(tests), "seconds": round(time.monotonic() - start, 1)}
    output = place.output.read_text(errors="replace").splitlines()
    found = [line.split(" - ")[0] for line in output if line.startswith(("FAILED ", "ERROR "))]
    return {**row, "by": (found or [f"exit code {code}"])[0]} if outcome == "killed" else row


def sample(root: Path, size: int, seed: int) -> list[Mutant]:
    """So many mutants of all that there are, in an order by chance."""
    files = sorted(path for room in ROOMS for path in (root / PACKAGE / room).glob("*.py"))
    kept = [path for path in files if not str(path).endswith(LEFT_OUT)]
    every = [one for path in kept for one in mutants_of(str(path.relative_to(root)), path.read_bytes())]
    print(f"{len(every)} mutants of {len(kept)} files; a sample of {min(size, len(every))} by seed {seed}")
    return random.Random(seed).sample(every, min(size, len(every)))


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The score, by room, as Markdown; a mutant whose lines no test runs counts as one that survived."""
    lines = ["| room | mutants | killed | survived | no test | score |", "|---|---:|---:|---:|---:|---:|"]
    for room in (*ROOMS, "both"):
        mine = [row for row in rows if room == "both" or row["file"].startswith(f"{PACKAGE}/{room}/")]
        count = Counter("killed" if row["outcome"] == "timeout" else row["outcome"] for row in mine)
        score = f"{100 * count['killed'] / len(mine):.1f} %" if mine else "–"
        lines.append(
            f"| {room} | {len(mine)} | {count['killed']} | {count['survived']} | {count['no test']} | {score} |"
        )
    return "\n".join(lines)


class Run:
    """The mutants of a sample, and the rows of those that are judged."""

    def __init__(self, options: argparse.Namespace) -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        self.options, root = options, Path.cwd()
        self.mutants = sample(root, options.sample, options.seed)
        self.place = Workplace(root, options.out)
        self.rows_path, self.tests_path = options.out / "mutants.jsonl", options.out / "tests.json"
        self.before = self.rows()

    def rows(self) -> list[dict[str, Any]]:
        """All rows; the last of a mutant counts."""
        return [json.loads(line) for line in self.rows_path.read_text().splitlines()] if self.rows_path.exists() else []

    def known(self) -> Known:
        """What is known of the tests."""
        found: Known = json.loads(self.tests_path.read_text()) if self.tests_path.exists() else {}
        return found

    def collected(self, session: pytest.Session) -> None:
        """Observe tests, and judge what is in functions."""
        known, named = self.known(), tuple(self.options.observe)
        names = [item.nodeid for item in session.items if named and item.nodeid.startswith(named)]
        if not named:
            names = [name for name in cheap(session.items, self.options.cases) if name not in known]
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(name.split("::")[0], []).append(name)
        for file, mine in by_file.items():
            known |= observe(self.place, session, mine)
            self.tests_path.write_text(json.dumps(known))
            print(f"{file}: {len(mine)} tests observed", flush=True)
        collected = {item.nodeid for item in session.items}
        if self.options.again and named:  # they have met the others
            collected &= {*names}
        self.judge({test: seen for test, seen in known.items() if test in collected}, session)

    def judge(self, known: Known, session: pytest.Session | None) -> None:
        """Judge the mutants that are left: with a session those in functions."""
        outcomes = {row["name"]: row["outcome"] for row in self.before}
        now = {row["name"] for row in self.rows()[len(self.before) :]}
        left = [one for one in self.mutants if one.name not in now]
        left = [one for one in left if outcomes.get(one.name) in (self.options.again or [None])]
        functions = loaded_functions(self.place.copy) if session else {}
        gc.freeze()  # a fork shares memory that nobody writes to
        for number, mutant in enumerate(left, 1):
            if session is not None and not mutant.function:
                continue
            row = judge(self.place, mutant, known, self.options.budget, session, functions)
            if row is not None:
                with self.rows_path.open("a") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                print(f"{number}/{len(left)} {row['outcome']}: {mutant.name}", flush=True)

    def __call__(self) -> None:
        """Judge what has no row, or is to be judged again, and print the score."""
        ignored = [f"--ignore={path}" for path in NOT_RUN]

        def work() -> int:
            return int(pytest.main([*arguments(*ignored, *TESTS), "-s"], plugins=[Collected(self.collected)]))

        if self.place.forked(work) != 0:
            raise SystemExit("the tests can't be collected")
        self.judge(self.known(), None)
        latest = {row["name"]: row for row in self.rows()}
        print(report([latest[mutant.name] for mutant in self.mutants if mutant.name in latest]))


def main() -> None:
    """Judge mutants, and print the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of results")
    parser.add_argument("--sample", type=int, default=330, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--budget", type=float, default=10, help="seconds of the processor for the tests of a mutant")
    parser.add_argument(
        "--again", choices=("survived", "no test"), action="append", default=[], help="judge these anew, and no others"
    )
    parser.add_argument(
        "--observe",
        nargs="+",
        default=[],
        help="tests, by how their names begin, that are new, or too slow to be among those that all mutants meet",
    )
    parser.add_argument("--cases", type=int, default=2, help="how many of a test's cases all mutants meet")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in LOADED:
        importlib.import_module(name)
    Run(options)()


if __name__ == "__main__":
    main()
