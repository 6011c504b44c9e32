"""docs/conformance.md, followed literally in an empty folder; and its tables, held against the code."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pytest
from mutants import MUTANTS

from backends.conformance import strategies
from backends.conformance.arrays import LAYOUTS, MASKED, SHIFTED, VALUES
from backends.conformance.blocks import SCALES
from backends.conformance.check import Check
from backends.conformance.perf import SEEN, SIZES
from backends.conformance.runner import EXAMPLES
from backends.conformance.suite import checks
from backends.conformance.tolerances import TOLERANCES, U
from ops.blocks import FORMATS
from ops.op import OPS
from tinyllama.cli import conformance

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "conformance.md").read_text("utf-8")
FILE_OR_COMMANDS = re.compile(r"`([\w.-]+)`[^\n`]*:\n\n```\w+\n(.*?)```|```console\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d[\d.e+-]*")


# The steps


def test_the_page_followed_literally(tmp_path):
    """Files are written and commands run, in their order; each line that the page shows is printed, numbers aside.

    A command ends with 1 where the page shows a failure, else with 0.
    """
    n_commands = 0
    for name, content, console in FILE_OR_COMMANDS.findall(PAGE):
        if name:
            (tmp_path / name).write_text(content, "utf-8")
            continue
        for step in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
            command, _, shown = step.partition("\n")
            done = run(command, tmp_path)
            told = f"$ {command}\n{done.stdout}{done.stderr}"
            assert done.returncode == int("FAILED" in shown or "Error" in shown), told
            printed = iter(map(shape, (done.stdout + done.stderr).splitlines()))
            for line in shown.splitlines():
                assert line == "..." or shape(line) in printed, f"not printed here: {line}\n{told}"  # in this order
            n_commands += 1
    assert n_commands >= 10


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Programs of this environment, in another folder."""
    program, *args = shlex.split(command)
    found = sys.executable if program == "python" else shutil.which(program, path=sysconfig.get_path("scripts"))
    assert found, f"{program} is not installed beside {sys.executable}"
    environment = {**os.environ, "COLUMNS": "80"}  # the width in which pytest prints
    return subprocess.run([found, *args], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300)


def shape(line: str) -> list[str]:
    """The cells of a line, without those that differ from run to run: numbers, and the case in which an error was largest."""
    return [NUMBER.sub("#", cell) for cell in re.split(r" {2,}|(?<==) | (?==)", line.strip(" =")) if "=" not in cell]


def test_the_code_under_a_failure_shows_it_again(tmp_path):
    """What is printed today, not what the page has kept."""
    files = [(name, content) for name, content, _ in FILE_OR_COMMANDS.findall(PAGE) if name][:2]
    assert [name for name, _ in files] == ["my_backend.py", "my_mistake.py"]
    for name, content in files:
        (tmp_path / name).write_text(content, "utf-8")
    printed = run("tinyllama conformance my_mistake:Mistaken -k rope --examples 20", tmp_path).stdout
    snippets = re.findall(
        r"^from backends import get_backend\n.*?^(?:check_case|replay)\(.*?$", printed, re.DOTALL | re.MULTILINE
    )
    assert snippets, printed
    for code in snippets:
        (tmp_path / "again.py").write_text(code, "utf-8")
        again = run("python again.py", tmp_path)
        assert again.returncode == 1
        assert re.search("^AssertionError: ", again.stderr, re.MULTILINE), again.stderr  # the check's own, and no other error


# The tables


def test_the_flags_of_the_command():
    parser = argparse.ArgumentParser()
    conformance.add_arguments(parser)
    flags = {action.option_strings[0] for action in parser._actions if action.option_strings} - {"-h"}
    told = (DOCS / "command-line.md").read_text("utf-8").partition("\n## conformance\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(--?[a-z-]+)", told, re.MULTILINE)) == flags


def rows(heading: str) -> list[str]:
    """The rows of the table under these headings."""
    _, _, after = PAGE.partition(f"\n{heading}\n|")
    assert after, f"no table '{heading}'"
    return after.partition("\n\n")[0].splitlines()[1:]


def joined(values: Iterable[object]) -> str:
    return ", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values)


def drawn() -> list[str]:
    lists = {
        "T, tokens of a step": joined(strategies.LETTERS["T"]),
        "columns: n, m": joined(strategies.SIZES),
        "n of a quantised weight, in blocks": joined((*strategies.BLOCKS, 8, 9)) + " (1 to 5 of 256 weights)",
        "V, tokens in the vocabulary": joined(strategies.LETTERS["V"]),
        "query heads for a key head": joined(strategies.RATIOS["h"]),
        "key heads": joined(strategies.LETTERS["k"]),
        "d, size of a head": joined(strategies.HEAD_DIMS),
        "first position, with a cache": joined(strategies.STARTS),
        "first position of rope, more": joined(strategies.FAR_STARTS[len(strategies.STARTS) :]),
        "places of the cache that are not used": joined(strategies.SPARE),
        "magnitude: standard deviation": joined(strategies.MAGNITUDES),
        "sharpness of scores, by `scale`": joined(strategies.SHARPNESS),
        "distribution": joined((*VALUES, f"{MASKED} (softmax)", f"{SHIFTED} (layernorm)")),
        "layout in the host's memory": joined(LAYOUTS),
        "type of integers": "int64, int32",
        "format of weights": joined(FORMATS),
        "scales in blocks": joined(SCALES),
    }
    return [f"| {label} | {values} |" for label, values in lists.items()]


def test_what_is_drawn():
    assert rows("| drawn | from |") == drawn()
    assert f"below {strategies.WORK:,}" in PAGE


def test_the_tolerances():
    """The page's expressions and the code's functions give the same numbers, whatever the sizes."""
    usual = {**SIZES, "S": SEEN}
    prime = dict(zip(usual, (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163), strict=True))
    shown = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in rows("| op | roundings | drift | size | NMSE at most | why |")
    ]
    assert [row[0].strip("`") for row in shown] == list(TOLERANCES)
    assert set(TOLERANCES) == {
        op.name if len(op.outputs) == 1 else f"{op.name}.{output.name}" for op in OPS.values() for output in op.outputs
    }
    for op, roundings, drift, size, nmse, why in shown:
        tolerance = TOLERANCES[op.strip("`")]
        for sizes in (usual, prime):
            names = {"sqrt": math.sqrt, **sizes}
            assert eval(roundings.strip("`"), {}, names) == pytest.approx(tolerance.roundings(sizes))
            assert eval(drift.strip("`"), {}, names) == pytest.approx(tolerance.drift(sizes))
        assert size == tolerance.size.__qualname__.partition(".")[0]
        limit = ((tolerance.roundings(usual) + tolerance.drift(usual)) * U) ** 2
        assert nmse == ("0" if tolerance.exact else f"{limit:.1e}")
        assert why == tolerance.reason


def told(check: Check) -> str:
    return f"| `{check.name}` | {check.told} | {check.examples or EXAMPLES} |"


def laws() -> list[str]:
    """Those that hold for every op have one row."""
    found = {name: check for name, check in checks().items() if name.startswith("law-")}
    of_all = [check for name, check in found.items() if name.startswith("law-same-bits-")]
    assert [check.ops[0] for check in of_all] == list(OPS)
    one = told(of_all[0]).replace(of_all[0].name, "law-same-bits-OP").replace(f"| {of_all[0].ops[0]} of", "| an op of")
    return [told(check) for check in found.values() if check not in of_all] + [one]


def others() -> list[str]:
    return [told(check) for name, check in checks().items() if name.startswith(("contract-", "graph-", "run-"))]


def test_the_laws():
    assert rows("| law | what must hold, and why | cases |") == laws()
    assert len(laws()) >= 12


def test_the_other_checks():
    assert rows("| check | what must hold | cases |") == others()
    families = {name.partition("-")[0] for name in checks()}
    assert families == {"op", "law", "contract", "graph", "run"}  # each is on the page


def mutants() -> list[str]:
    return [f"| {name} | {' '.join((mutant.backend.__doc__ or '').split())} |" for name, mutant in MUTANTS.items()]


def test_the_mutants():
    assert rows("| mutant | what is wrong |") == mutants()
    assert f"{len(MUTANTS)} *mutants*" in PAGE
