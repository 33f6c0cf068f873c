#!/usr/bin/env python3
"""Run transformers' own model tests over our classes and over the library's, and compare the two.

The tests are `tests/test_modeling_common.py` of the source archive of the installed transformers. pip fetches the
archive into a temporary folder; nothing of it enters the repository. `model_tester.py`, beside this file, tells the
tests about the family: small configurations, inputs and labels, the same for both sides.

Exit code 1: a test that passes on theirs does not pass on ours (failed or skipped) and is no deliberate difference, or
a deliberate difference is none any more.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

EXAMPLES = """examples:
  python tools/transformers_model_tests.py                      both sides, about 6 minutes
  python tools/transformers_model_tests.py --side ours -k "CTC and save_load"
  python tools/transformers_model_tests.py --processes 2 --json > counts.json
"""

# Tests that pass on theirs and are not meant to pass on ours, with the promise that stands against them.
DELIBERATE = {
    "test_model_weights_reload_no_missing_tied_weights": (
        "demands that a file without any weight of the network loads; our from_pretrained refuses it, because random "
        "weights would give wrong results without a sign"
    ),
}

# Mixins of other test suites that `test_modeling_common.py` imports and the archive lacks.
STAND_INS = {"exporters/test_export.py": "ExportTesterMixin", "generation/test_utils.py": "GenerationTesterMixin"}

HERE = Path(__file__).resolve().parent
TESTER = "test_wav2vec2_conformer.py"  # the name under which `model_tester.py` stands among the library's tests
SIDES = ("ours", "theirs")
OUTCOMES = ("passed", "failed", "skipped")


class Side(NamedTuple):
    """Outcome and, where it did not pass, reason of each test of a side; and how long they took."""

    outcomes: dict[str, str]
    reasons: dict[str, str]
    seconds: float

    def counts(self) -> dict[str, int]:
        """Number of tests with each outcome."""
        counted = Counter(self.outcomes.values())
        return {outcome: counted[outcome] for outcome in OUTCOMES}


class Comparison(NamedTuple):
    """Names of tests by what they say about the two sides."""

    missing: list[str]  # pass on theirs only
    deliberate: list[str]  # the same, but listed in DELIBERATE
    extra: list[str]  # pass on ours only
    stale: list[str]  # listed in DELIBERATE, and pass on ours


def pip(*arguments: str) -> None:
    """Run pip with the indexes that the machine is set up for; what it prints goes to stderr."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit(f"`{' '.join(command)}` failed with exit code {code}")


def fetch(version: str, folder: Path) -> Path:
    """Download the source archive of a version of transformers (pip checks its hash)."""
    pip("download", "--no-deps", "--no-binary", "transformers", "--dest", str(folder), f"transformers=={version}")
    return next(folder.glob("transformers-*.tar.gz"))


def unpack(archive: Path, version: str, folder: Path) -> None:
    """Lay out a package `tests` in `folder`: the archive's shared test files, the stand-ins and our model tester."""
    tests = folder / "tests"
    for stand_in, mixin in STAND_INS.items():
        (tests / stand_in).parent.mkdir(parents=True)
        (tests / stand_in).with_name("__init__.py").touch()
        (tests / stand_in).write_text(f"class {mixin}:\n    pass\n")
    (tests / "__init__.py").touch()
    root = PurePosixPath(f"transformers-{version}")
    with tarfile.open(archive) as opened:
        for member in opened:
            path = PurePosixPath(member.name)
            content = opened.extractfile(member) if path.match(f"{root}/tests/*.py") else None
            if content is not None:
                (tests / path.name).write_bytes(content.read())
    if not (tests / "test_modeling_common.py").is_file():
        sys.exit(f"{archive} holds no {root}/tests/test_modeling_common.py; expected transformers {version}'s archive")
    shutil.copy(HERE / "model_tester.py", tests / TESTER)


def run(side: str, folder: Path, expression: str | None, processes: int) -> Side:
    """Run the tests over one side's classes in a process of their own."""
    results, configuration = folder / f"{side}.xml", folder / "pytest.ini"
    configuration.write_text("[pytest]\n")  # an own one, so that none further up applies
    environment = os.environ | {
        "MODEL_TESTS_SIDE": side,
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "packages"), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    command = [sys.executable, "-m", "pytest", "-c", str(configuration), "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--disable-warnings", "--junit-xml", str(results), str(folder / "tests" / TESTER)]
    command += ["-k", expression] if expression else []
    command += ["-n", str(processes)] if processes > 1 else []
    print(f"running {side} ...", file=sys.stderr)
    begun = time.monotonic()
    ended = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if ended.returncode not in (0, 1):  # 1: some tests failed
        sys.exit(f"pytest ended with {ended.returncode}:\n{ended.stdout.decode(errors='replace')[-4000:]}")
    return read(results, time.monotonic() - begun)


def read(results: Path, seconds: float) -> Side:
    """Outcomes in a JUnit file; a test with several reports (subtests) failed if one of them did."""
    outcomes, reasons = {}, {}
    for case in ElementTree.parse(results).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        found = {child.tag: child.get("message", "") for child in case}
        failure = found.get("failure", found.get("error"))
        outcomes[name] = "failed" if failure is not None else "skipped" if "skipped" in found else "passed"
        if outcomes[name] != "passed":
            reasons[name] = " ".join((failure if failure is not None else found["skipped"]).split())
    return Side(outcomes, reasons, seconds)


def is_deliberate(name: str) -> bool:
    """Whether DELIBERATE lists a test, whatever class it runs on."""
    return name.rpartition("::")[2] in DELIBERATE


def compare(ours: Side, theirs: Side) -> Comparison:
    """Sort the tests that pass on one side only."""
    passed = {name for name, outcome in ours.outcomes.items() if outcome == "passed"}
    expected = {name for name, outcome in theirs.outcomes.items() if outcome == "passed"}
    return Comparison(
        missing=sorted(name for name in expected - passed if not is_deliberate(name)),
        deliberate=sorted(name for name in expected - passed if is_deliberate(name)),
        extra=sorted(passed - expected),
        stale=sorted(name for name in passed if is_deliberate(name)),
    )


def versions() -> dict[str, str]:
    """What the counts depend on."""
    packages = {name: importlib.metadata.version(name) for name in ("transformers", "torch", "pytest")}
    return packages | {"python": platform.python_version()}


def show(sides: dict[str, Side], comparison: Comparison | None) -> None:
    """Print the counts and the differences."""
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(f"\n{'':8}" + "".join(f"{outcome:>9}" for outcome in (*OUTCOMES, "seconds")))
    for name, side in sides.items():
        print(f"{name:8}" + "".join(f"{count:9}" for count in side.counts().values()) + f"{side.seconds:9.0f}")
    if comparison is None:
        for name, side in sides.items():
            lines(f"fail on {name}", [test for test, outcome in side.outcomes.items() if outcome == "failed"], side)
        return
    lines("pass on theirs, not on ours", comparison.missing, sides["ours"])
    lines("pass on theirs, deliberately not on ours", comparison.deliberate)
    for test in sorted({name.rpartition("::")[2] for name in comparison.deliberate}):
        print(f"  why {test}: {DELIBERATE[test]}")
    lines("pass on ours, not on theirs", comparison.extra, sides["theirs"])
    lines("listed as deliberate, but pass on ours", comparison.stale)


def lines(title: str, names: list[str], side: Side | None = None) -> None:
    """Print names under a title, with what the side that did not pass them says."""
    print(f"\n{title}: {len(names)}")
    for name in names:
        print(f"  {name}" + (f"  [{side.outcomes.get(name)}: {side.reasons.get(name, '')[:160]}]" if side else ""))


def main() -> int:
    """Fetch, run, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", choices=(*SIDES, "both"), default="both", help="whose classes (default: both)")
    parser.add_argument("-k", metavar="EXPR", help="only the tests that pytest's -k selects")
    parser.add_argument("--archive", type=Path, help="the source archive, where it need not be downloaded")
    parser.add_argument("--processes", type=int, default=1, help="test processes (default: 1; more need pytest-xdist)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args()

    version = versions()["transformers"]
    with tempfile.TemporaryDirectory(prefix="transformers-model-tests-") as temporary:
        folder = Path(temporary)
        unpack(arguments.archive or fetch(version, folder), version, folder)
        if importlib.util.find_spec("parameterized") is None:  # the one package that the tests need besides ours
            pip("install", "--no-deps", "--target", str(folder / "packages"), "parameterized")
        chosen = SIDES if arguments.side == "both" else (arguments.side,)
        sides = {side: run(side, folder, arguments.k, arguments.processes) for side in chosen}

    comparison = compare(sides["ours"], sides["theirs"]) if len(sides) == 2 else None
    if arguments.json:
        counts = {name: side.counts() | {"seconds": round(side.seconds)} for name, side in sides.items()}
        differences = {} if comparison is None else comparison._asdict()
        print(json.dumps({"versions": versions(), "counts": counts, **differences}, indent=2))
    else:
        show(sides, comparison)
    if comparison is not None:
        return int(bool(comparison.missing or comparison.stale))
    failed = [name for side in sides.values() for name, outcome in side.outcomes.items() if outcome == "failed"]
    return int(any(not is_deliberate(name) for name in failed))


if __name__ == "__main__":
    sys.exit(main())
