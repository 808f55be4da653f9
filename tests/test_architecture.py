"""A room imports only from rooms with a smaller number; the few methods that look up do so inside the function."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ppl_vae"

ROOMS = {
    "errors": 0,
    "alone": 0,
    "functional": 1,
    "version": 0,
    "records": 0,
    "progress": 0,
    "fit": 0,
    "evidence": 0,
    "fit_answers": 0,
    "over_draws": 0,
    "over_classes": 0,
    "families": 1,
    "nets": 1,
    "fit_files": 1,
    "likelihoods": 1,
    "flows": 1,
    "priors": 2,
    "codebooks": 2,
    "code_priors": 2,
    "relaxed": 1,
    "posteriors": 2,
    "data": 1,
    "missing": 1,
    "objectives": 1,
    "criteria": 1,
    "convergence": 1,
    "counted": 1,
    "declare": 2,
    "models": 3,
    "align": 3,
    "relabel": 3,
    "invariants": 3,
    "coordinates": 3,
    "infer": 4,
    "dims": 4,
    "datatree": 5,
    "from_pyro": 5,
    "pointwise": 5,
    "diagnostics": 5,
    "evaluation": 5,
    "predictive": 6,
    "quality": 5,
    "rows": 6,
    "diagnose": 5,
    "export": 5,
    "log_evidence": 5,
    "information": 4,
    "uncertainty": 5,
    "bootstrap": 5,
    "calibration": 5,
    "calibrate": 6,
    "calibrate_latents": 6,
    "refit": 5,
    "refit_codes": 5,
    "sweep": 5,
    "labels": 5,
    "comparable": 5,
    "compare": 6,
    "select": 6,
    "ratio": 6,
    "plots": 7,
    "report": 7,
    "sklearn": 7,
    "cli": 8,
    "__init__": 9,
}
"""Room by number. Within a number only the room itself, errors and fit may be imported."""

NEIGHBOURS = {
    ("fit", "fit_answers"),
    ("fit", "errors"),
    ("fit_answers", "alone"),
    ("fit_answers", "errors"),
    ("fit_answers", "evidence"),
    ("fit_answers", "progress"),
    ("fit_answers", "over_draws"),
    ("over_draws", "evidence"),
    ("refit_codes", "refit"),
    ("fit", "version"),
    ("fit", "records"),
    ("records", "errors"),
    ("alone", "errors"),
    ("report", "plots"),
    ("diagnostics", "datatree"),
    ("datatree", "from_pyro"),
    ("from_pyro", "pointwise"),
    ("relabel", "align"),
    ("relabel", "invariants"),
    ("invariants", "align"),
    ("labels", "datatree"),
    ("compare", "rows"),
    ("objectives", "missing"),
    ("families", "missing"),
}
"""Pairs of one number of which the first may import the second."""

LOOK_UP = {
    ("fit", "evaluate", "evaluation"),
    ("fit", "diagnose", "diagnose"),
    ("diagnose", "figures", "plots"),
    ("fit", "to_datatree", "datatree"),
    ("fit", "export", "export"),
    ("fit", "save", "fit_files"),
    ("fit", "load", "fit_files"),
    ("fit", "_repr_html_", "report"),
    ("declare", "render", "plots"),
    ("declare", "_repr_html_", "report"),
    ("compare", "report", "report"),
    ("compare", "_repr_html_", "report"),
    ("select", "plot", "plots"),
    ("calibration", "plot", "plots"),
    ("select", "_repr_html_", "report"),
    ("uncertainty", "_repr_html_", "report"),
}
"""Methods of one line that import upward when they are called."""


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST):
    """(room imported, name of the function it is imported in or None)."""
    inside = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                inside[node] = function.name
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ppl_vae":
            parts = node.module.split(".")[1:]
            names = [parts[0]] if parts else [alias.name for alias in node.names]
            for name in names:
                yield name if name in ROOMS else "__init__", inside.get(node)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = room_of(path)
    assert own in ROOMS, f"{own} is in no room: give it a number"
    for other, function in imports(ast.parse(path.read_text())):
        if other == own or (own, other) in NEIGHBOURS or (own, function, other) in LOOK_UP:
            continue
        assert ROOMS[other] < ROOMS[own], f"{path.name} (room {ROOMS[own]}) imports {other} (room {ROOMS[other]})"


def test_no_room_for_odds_and_ends():
    assert not list(PACKAGE.rglob("utils.py"))


def test_import_is_light_and_changes_no_setting():
    program = (
        "import sys, torch, pyro; d = torch.get_default_dtype(); v = pyro.settings.get();"
        "import ppl_vae;"
        "heavy = [m for m in ('torchvision', 'sklearn', 'pandas', 'matplotlib', 'arviz_stats', 'nutpie', 'cyclopts')"
        " if m in sys.modules];"
        "assert not heavy, heavy;"
        "assert torch.get_default_dtype() == d and pyro.settings.get() == v;"
        "assert len(pyro.get_param_store()) == 0"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_slow_rooms_are_loaded_when_they_are_asked_for():
    code = "import sys, ppl_vae as pv; assert 'matplotlib' not in sys.modules; pv.plots.bound; pv.sklearn.KMeans"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module("ppl_vae").nothing  # noqa: B018
