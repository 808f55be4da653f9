"""The README says what it should, and its code runs."""

import functools
import re
from pathlib import Path

import pytest

import ppl_vae as pv

README = Path(__file__).resolve().parents[1] / "README.md"

FIRST = "python -m pip install . && ppl-vae compare"
SECOND = "python -m pip install '.[test]' && python -m pytest"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("command", [FIRST, SECOND])
def test_the_two_commands_stand_on_the_first_screen(command):
    first_screen = README.read_text(encoding="utf-8").splitlines()[:25]
    assert command in first_screen


def test_from_declaration_to_table_in_fifteen_lines():
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def run():
    for code in blocks("python"):
        exec(compile(code, str(README), "exec"), {"__name__": "readme"})


def test_the_code_runs(monkeypatch, capsys):
    """As written, but for the length of the chains and the progress bars."""
    quick = functools.partial(pv.NUTS, num_samples=30, warmup=60, num_chains=2, progress=False)
    monkeypatch.setattr(pv, "NUTS", quick)
    monkeypatch.setattr(pv, "SVI", functools.partial(pv.SVI, progress=False))
    monkeypatch.setattr(pv, "EM", functools.partial(pv.EM, progress=False))
    run()
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("EM", "SVI", "NUTS", "converged", "predictive"))


@pytest.mark.slow
def test_the_code_runs_as_it_stands(capsys):
    run()
    assert "NUTS" in capsys.readouterr().out


def test_the_comparison_is_there():
    text = README.read_text(encoding="utf-8")
    table = text.split("<!-- comparison", 1)[1].split("<!-- end of comparison -->")[0]
    for name in ("EM (ML)", "EM (MAP)", "SVI", "NUTS"):
        assert f"| {name} |" in table
    assert "torch" in table
    for picture in re.findall(r'(?:src|srcset)="([^"]+)"', text):
        assert (README.parent / picture).is_file(), picture


def test_links_to_files_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / target).exists(), target
