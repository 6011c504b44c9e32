"""The documentation says what the code says: tables, links, flags, the picture. Its examples are run by pytest as doctests."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import pytest

from ops.blocks import FORMATS
from ops.op import OPS, Op
from tinyllama import Model
from tinyllama.cli.main import COMMANDS
from tinyllama.cli.terminal import Parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def table(page: str, columns: int, first: str) -> dict[str, list[str]]:
    """The cells of all rows of so many columns whose first cell matches, by the first cell without its code marks."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text_of(ROOT / "docs" / page).splitlines()]
    return {row[0].strip("`"): row for row in rows if len(row) == columns and re.fullmatch(first, row[0])}


OPS_TABLE = table("ops.md", 5, r"`\w+`")
FORMATS_TABLE = table("gguf.md", 6, r"[A-Z]+\w*\d\w*")


def test_every_op_has_its_line_and_every_line_its_op():
    assert set(OPS_TABLE) == set(OPS)


@pytest.mark.parametrize("name", sorted(OPS_TABLE))
def test_the_line_of_an_op(name):
    op = OPS[name]
    _, signature, meaning, flops, file = OPS_TABLE[name]
    condition = f", `{op.where_text}`" if op.where_text else ""
    attributes = f"; {', '.join(f'`{a}`' for a in op.attrs)}" if op.attrs else ""
    assert signature == f"`{op.signature}`{condition}{attributes}"
    assert words(meaning.replace("`", " ")) == words((op.__doc__ or "").splitlines()[0])
    assert same_flops(flops.strip("`"), op)
    module = op.formula.__module__.removeprefix("ops.")
    assert file == f"[{module}.py](../ops/{module}.py)"


def words(text: str) -> list[str]:
    return text.split()


def same_flops(text: str, op: Op) -> bool:
    """Do both expressions agree? Two polynomials that differ give different numbers for sizes as unrelated as these."""
    letters = sorted({dim for operand in op.inputs for dim in operand.dims} | {"S"})
    primes = (101, 103, 107, 109, 113, 127, 131, 137)
    sizes = dict(zip(letters, primes, strict=False))
    return eval(text, {}, dict(sizes)) == eval(op.flops, {}, dict(sizes))


def test_the_table_of_block_formats():
    assert set(FORMATS_TABLE) == set(FORMATS)
    for name, (_, ggml_type, block_size, block_bytes, bits, meaning) in FORMATS_TABLE.items():
        format = FORMATS[name]
        assert ggml_type == ("none" if format.ggml_type is None else str(format.ggml_type))
        assert (int(block_size), int(block_bytes)) == (format.block_size, format.block_bytes)
        assert float(bits) == 8 * format.block_bytes / format.block_size
        formula = (format.dequantize.__doc__ or "").splitlines()
        if formula and formula[0].startswith("w = "):
            assert meaning.replace("`", "") == formula[0].removeprefix("w = ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else f"docs-{page.name}")
def test_relative_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    lost = [t for t in targets if "://" not in t and not (page.parent / t.partition("#")[0]).exists()]
    assert not lost


def test_all_pages_are_in_the_index():
    index = text_of(ROOT / "docs" / "README.md")
    assert [page.name for page in PAGES[2:] if page.name != "README.md" and f"]({page.name})" not in index] == []


def test_flags_that_the_docs_name_exist(pytestconfig):
    of_pytest = {f"--{name.replace('_', '-')}" for name in vars(pytestconfig.option)}  # the conformance kit's among them
    known = {"--help", "--version", "--tasks"} | of_pytest  # --tasks is the lm-evaluation-harness's
    for module in COMMANDS.values():
        parser = Parser()
        module.add_arguments(parser)
        known |= {flag for action in parser._actions for flag in action.option_strings}
    named = {flag for page in PAGES for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text_of(page))}
    assert len(named) > 10
    assert named <= known


def test_the_picture_shows_the_layer(smollm2):
    """Made by `tinyllama graph -o docs/layer.svg`."""
    picture = text_of(ROOT / "docs" / "layer.svg")
    graph = Model.load(smollm2, backend="numpy").graph
    missing = [node.output.name for node in graph.nodes if node.layer == 0 and f">{node.output.name}<" not in picture]
    assert missing == []


def test_the_python_of_readme_runs(smollm2, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", text_of(ROOT / "README.md"), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert "Paris" in capsys.readouterr().out  # of a capital a model of this size is sure
    assert prod(names["logits"].shape) == 49152  # the vocabulary of SmolLM2, by its model card
