"""The site agrees with the code: every public name is in the reference, every name on the theory page exists."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest

import ppl_vae as pv

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
THEORY = (DOCS / "theory.md").read_text(encoding="utf-8")
RESULTS = dict(re.findall(r"^### (T\d+)\. (.*?)(?=^###? |\Z)", THEORY, re.MULTILINE | re.DOTALL))

ROOMS = (
    "code_priors",
    "codebooks",
    "data",
    "datatree",
    "diagnose",
    "diagnostics",
    "evaluation",
    "evidence",
    "families",
    "flows",
    "infer",
    "likelihoods",
    "models",
    "nets",
    "objectives",
    "plots",
    "posteriors",
    "priors",
    "relaxed",
    "sklearn",
)


def reference():
    """Names in the reference with their module, as {module.name}."""
    found = set()
    for path in (DOCS / "reference").glob("*.rst"):
        module = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(".. currentmodule:: "):
                module = line.removeprefix(".. currentmodule:: ")
            elif module and re.fullmatch(r"   \w+", line):
                found.add(f"{module}.{line.strip()}")
            elif line.startswith(".. py:data:: "):
                name = line.removeprefix(".. py:data:: ")
                found.add(name if "." in name else f"{module}.{name}")
    return found


def test_every_public_name_is_in_the_reference():
    names = reference()
    pages = {path.stem for path in (DOCS / "reference").glob("*.rst")}
    modules = {name for name in pv.__all__ if type(getattr(pv, name)).__name__ == "module"}
    assert modules <= pages
    missing = {name for name in pv.__all__ if f"ppl_vae.{name}" not in names} - modules
    assert not missing


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_is_in_the_reference(room):
    module = importlib.import_module(f"ppl_vae.{room}")
    names = reference()
    top = {id(getattr(pv, name)) for name in pv.__all__}
    missing = [n for n in module.__all__ if f"ppl_vae.{room}.{n}" not in names and id(getattr(module, n)) not in top]
    assert not missing


def test_every_name_of_the_reference_exists():
    for name in reference():
        resolve(name)


def test_every_option_of_svi_is_on_the_training_page_with_its_default():
    text = (DOCS / "train.md").read_text(encoding="utf-8").split("## Every option")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)` )?\|", text, re.MULTILINE)
    options = {field.name: field for field in dataclasses.fields(pv.SVI)}
    assert [name for name, _ in rows] == list(options)
    defaults = vars(pv.SVI(1))
    assert {n: eval(v, {"pv": pv}) for n, v in rows[1:]} == {n: v for n, v in defaults.items() if n != "epochs"}


def resolve(dotted):
    """The object of a dotted name: the longest module, then attributes."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        # A function may hide the module of its name, as ppl_vae.compare does.
        try:
            for attribute in parts[cut:]:
                found = getattr(found, attribute)
        except AttributeError:
            continue
        return found
    raise AssertionError(f"{dotted} does not exist")


def test_the_theory_page_lists_every_result_in_order():
    assert list(RESULTS) == [f"T{i}" for i in range(1, 27)]


@pytest.mark.parametrize("result", RESULTS)
def test_a_result_is_implemented_and_checked_or_planned(result):
    text = RESULTS[result]
    lines = dict(re.findall(r"^- (implemented by|checked by|planned): (.*)$", text, re.MULTILINE))
    assert "planned" in lines or {"implemented by", "checked by"} <= set(lines)
    assert ("implemented by" in lines) == ("checked by" in lines)


@pytest.mark.parametrize("result", RESULTS)
def test_the_functions_named_exist(result):
    for name in re.findall(r"`(ppl_vae\.[\w.]+)`", RESULTS[result]):
        resolve(name)


def test_the_tests_named_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", THEORY)
    assert named
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_every_test_of_the_theory_is_named():
    for path in (ROOT / "tests" / "theory").glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert f"::{node.name}`" in THEORY, f"{path.name}::{node.name} is not on the theory page"


def test_the_family_that_the_docs_add_is_short_and_works(capsys):
    """The page's own cells: a mixture, then the geometric family in it, with missing entries."""
    text = (DOCS / "families.md").read_text(encoding="utf-8")
    cells = re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    family = next(cell for cell in cells if "class Geometric" in cell)
    assert len([line for line in family.splitlines() if line.strip()]) <= 30
    scope = {}
    for cell in (cells[0].split("torch.manual_seed")[0], *cells[cells.index(family) :]):
        exec(compile(cell, "families.md", "exec"), scope)
    said = capsys.readouterr().out
    assert said.startswith("converged")
    found = scope["fit"].parameters["components.probs"].mean(1).sort().values.tolist()
    assert found == pytest.approx([0.1, 0.6], abs=0.05)
    assert float(re.search(r"densities: (\S+)", said)[1]) < 1e-12
    changes = [float(each) for each in re.findall(r"(-\S+) nats", said)]
    assert len(changes) == 2 and max(changes) < 0  # noqa: PT018
