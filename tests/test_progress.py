"""Progress: silent for short work, a bar that costs next to nothing in a terminal, lines in a log elsewhere."""

import io
import logging
import time
from itertools import pairwise

import pytest
import torch
from example_models import Nested
from rich.console import Console

import ppl_vae as pv
from ppl_vae import fit_answers
from ppl_vae import progress as module
from ppl_vae.progress import SHARE, Ration, progress, silent


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def screen(monkeypatch):
    """What a terminal is sent."""
    sent = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=sent, force_terminal=True, width=100))
    return sent


@pytest.mark.parametrize("cost", [0.0, 1e-3, 5e-3, 0.5])
def test_what_costs_more_is_done_more_seldom(clock, cost):
    ration, times, begin = Ration(least=0.2, patience=1.0), [], clock[0]
    while clock[0] < begin + 100:
        clock[0] += 0.01
        if ration.due():
            times.append(clock[0])
            with ration.spent():
                clock[0] += cost
    assert times[0] == pytest.approx(begin + 1.0, abs=0.02)
    assert min(b - a for a, b in pairwise(times)) >= 0.2
    # The last time may be just over: its cost is known afterwards only.
    assert cost * (len(times) - 1) <= SHARE * 100
    assert len(times) > 0.9 * min(99 / 0.21, SHARE * 100 / max(cost, 1e-9))


def ten_steps(clock):
    """Three seconds of work."""
    with progress("EM", 10) as update:
        for i in range(10):
            clock[0] += 0.3
            update(i, f"bound {i}.5")


def test_short_work_is_silent(clock, screen):
    with progress("EM", 10) as update:
        for i in range(10):
            clock[0] += 0.05
            update(i, "bound -3.2")
    assert screen.getvalue() == ""


def test_a_bar_shows_how_far_it_is(clock, screen):
    ten_steps(clock)
    shown = screen.getvalue()
    assert "EM" in shown
    assert "3/10" in shown and "bound 3.5" in shown  # noqa: PT018
    assert "2/10" not in shown, "before a second has passed nothing is drawn"
    assert "9/10" in shown


def test_a_notebook_without_widgets_draws_one_line_again_and_is_not_told_to_install_them(clock, monkeypatch):
    sent = io.StringIO()

    def console(stderr, force_jupyter=True, **settings):
        return Console(file=sent, force_jupyter=force_jupyter, **settings)

    monkeypatch.setattr(module, "Console", console)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    ten_steps(clock)
    shown = sent.getvalue()
    assert "9/10" in shown
    assert shown.count("\n") == 1, "a notebook cannot move up"
    assert shown.index("\n") > shown.index("bound 9.5")


def test_where_there_is_no_bar_nothing_is_asked(screen):
    with progress("EM", 10, enabled=False) as update:
        update(3, "bound")
    assert screen.getvalue() == ""


def test_drawing_takes_less_than_a_fiftieth_of_the_time(monkeypatch, screen):
    """A real bar, drawn as often as it may be, beside work of a second."""
    monkeypatch.setattr(module, "REFRESH", 0.0)
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with progress("warm", 1) as update:  # what is imported and built at the first bar
        update(0, "")
    kept = []

    class Kept(Ration):
        def __init__(self, *args):
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(module, "Ration", Kept)
    before, last = time.monotonic(), 0.0
    with progress("SVI", 10**9) as update:
        steps = 0
        while time.monotonic() < before + 1.0:
            cost = kept[0].cost
            update(steps, "bound -480.6698 nats per datum")
            last = max(last, kept[0].cost - cost)
            steps += 1
    elapsed = time.monotonic() - before
    assert screen.getvalue().count("SVI") >= 3
    assert kept[0].cost <= SHARE * elapsed + last


def test_elsewhere_a_line_is_logged_now_and_then(clock, monkeypatch, caplog):
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=False))
    with caplog.at_level(logging.INFO, "ppl_vae"), progress("SVI", 1000) as update:
        for step in range(1000):
            clock[0] += 0.125
            update(step, "bound -3.2")
    assert [record.getMessage() for record in caplog.records] == [
        f"SVI: {step} of 1000, bound -3.2" for step in (239, 479, 719, 959)
    ]


def test_what_runs_within_shows_no_progress_of_its_own(screen, clock):
    with progress("outer", 2) as outer, progress("inner", 2) as inner:
        clock[0] += 10
        inner(1, "")
        outer(1, "")
    assert "outer" in screen.getvalue()
    assert "inner" not in screen.getvalue()
    with silent(), progress("quiet", 2) as update:
        clock[0] += 10
        update(1, "")
    assert "quiet" not in screen.getvalue()


def test_an_answer_over_draws_says_how_far_it_has_come(screen, clock, monkeypatch):
    x = torch.arange(6.0)
    fit = pv.SVI(1, num_draws=8, progress=False).fit(Nested(), x)
    screen.truncate(0)
    take = Nested.log_prob_of_draws

    def slow(self, *args):
        clock[0] += 10
        return take(self, *args)

    monkeypatch.setattr(fit_answers, "TOGETHER", 2 * 64 * len(x))
    monkeypatch.setattr(Nested, "log_prob_of_draws", slow)
    assert fit.log_predictive(x, num_particles=2).shape == (6,)
    assert "draws of theta" in screen.getvalue()
    assert "2/8" in screen.getvalue()
    assert "6 data" in screen.getvalue()
