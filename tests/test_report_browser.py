"""The reports in a real browser: nothing fails, nothing is fetched, everything fits, the keyboard is enough."""

import dataclasses

import browser
import pytest
import torch

import ppl_vae as pv
from ppl_vae.fit import Status
from ppl_vae.report import write_comparison, write_training

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium, chromium-browser or google-chrome here")

RIGHT = ("ArrowRight", 39)
LEFT = ("ArrowLeft", 37)
PAGE = 5_000_000


def sampled(em):
    """Draws round EM's answer: what the page needs of NUTS, at once."""
    noise = torch.Generator().manual_seed(0)
    draws = {
        name: value * (1 + 0.02 * torch.rand(2, 60, *value.shape[2:], generator=noise, dtype=value.dtype))
        for name, value in em.draws.items()
    }
    draws["mixing.probs"] = draws["mixing.probs"] / draws["mixing.probs"].sum(-1, keepdim=True)
    stats = {"diverging": torch.zeros(2, 60, dtype=torch.bool)}
    status = Status("finished", "2 chains")
    return dataclasses.replace(em, engine="NUTS", draws=draws, trace={}, history={}, sample_stats=stats, status=status)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    model = pv.models.GaussianMixture(2, 2, "spherical", prior="weak")
    em = pv.EM(progress=False).fit(model, pv.data.faithful())
    path = tmp_path_factory.mktemp("comparison") / "report.html"
    return write_comparison(pv.compare({"EM": em, "NUTS": sampled(em)}), path, "ppl-vae compare")


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    data = pv.data.images("digits", binarize="threshold")
    model = pv.models.VAE(pv.nets.mlp_encoder(64, 16, 2), pv.nets.mlp_decoder(2, 16, 64))
    fit = pv.SVI(epochs=2, batch_size=256, validation=data.validation, progress=False).fit(model, data.train)
    found = fit.evaluate(data.test, num_particles=5)
    return write_training(fit, found, data, tmp_path_factory.mktemp("training") / "report.html", "ppl-vae train")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    found = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(params=["comparison", "training"])
def page(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_fits_and_asks_nobody(chromium, page, width, dark):
    assert page.stat().st_size < PAGE
    chromium.open(page, width, dark=dark)
    chromium.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert chromium.run("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    hidden = chromium.run("""[...document.querySelectorAll("figure, .pv-chart")].filter((element) => {
        const drawing = element.querySelector("svg, img, .pv-one");
        const box = drawing && drawing.getBoundingClientRect();
        return !box || box.width < 60 || box.height < 30 || box.left < 0 || box.left > innerWidth - 60;
    }).map((element) => element.outerHTML.slice(0, 200))""")
    assert hidden == []
    told = [e for e in chromium.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    told += [e for e in chromium.events if e["method"] == "Runtime.consoleAPICalled"]
    assert told == []
    asked = [e["params"]["request"]["url"] for e in chromium.events if e["method"] == "Network.requestWillBeSent"]
    assert [url[:60] for url in asked if not url.startswith(("data:", page.as_uri()))] == []


def test_a_page_may_not_ask(chromium, comparison):
    chromium.open(comparison)
    assert chromium.run("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.message)") != "sent"
    assert any("Content Security Policy" in str(event) for event in chromium.events)


def test_the_slider_steps_through_em_by_keyboard(chromium, comparison):
    chromium.open(comparison)
    now = """({
        said: document.querySelector(".pv-steps .pv-said").textContent,
        path: document.querySelector(".pv-shapes path").getAttribute("d"),
        dot: document.querySelector(".pv-dot").getAttribute("cy"),
        spoken: document.querySelector("#steps-slider").getAttribute("aria-valuetext"),
    })"""
    end = chromium.run(now)
    chromium.run("document.querySelector('#steps-slider').focus()")
    chromium.key("Home", 36)
    start = chromium.run(now)
    assert start["said"].startswith("Iteration 0 of")
    assert start["said"] == start["spoken"]
    assert start["path"] != end["path"]
    assert float(start["dot"]) > float(end["dot"])
    chromium.key(*RIGHT)
    assert chromium.run(now)["said"].startswith("Iteration 1 of")
    chromium.key("End", 35)
    assert chromium.run(now) == end


def test_every_control_is_reached_by_tab(chromium, page):
    chromium.open(page)
    wanted = chromium.run("document.querySelectorAll('main :is(a, button, input, select, summary)').length")
    seen = set()
    for _ in range(3 * wanted):
        chromium.key("Tab", 9)
        place = "[...document.querySelectorAll('main :is(a, button, input, select, summary)')]"
        seen.add(chromium.run(f"{place}.indexOf(document.activeElement)"))
    assert seen - {-1} == set(range(wanted))


def test_tables_are_sorted_by_their_heads(chromium, comparison):
    chromium.open(comparison)
    column = "[...document.querySelectorAll('#parameters tbody tr')].map((row) => parseFloat(row.cells[1].textContent))"
    before = chromium.run(column)
    for order in ("ascending", "descending"):
        chromium.run("document.querySelectorAll('#parameters th button')[1].click()")
        assert chromium.run("document.querySelectorAll('#parameters thead th')[1].ariaSort") == order
        assert chromium.run(column) == sorted(before, reverse=order == "descending")


def test_the_latent_plane_by_keyboard_and_pointer(chromium, training):
    chromium.open(training)
    said = "document.querySelector('.pv-plane .pv-one + .pv-said').textContent"
    shown = "getComputedStyle(document.querySelector('.pv-one')).backgroundPosition"
    first = chromium.run(said), chromium.run(shown)
    chromium.run("document.querySelector('#plane-across').focus()")
    chromium.key(*LEFT)
    assert chromium.run(said) != first[0]
    assert chromium.run(shown) != first[1]
    corner = chromium.run("""(() => {
        const picture = document.querySelector(".pv-manifold img"), box = picture.getBoundingClientRect();
        const at = { clientX: box.left + 1, clientY: box.top + 1, bubbles: true };
        picture.dispatchEvent(new PointerEvent("pointerdown", at));
        return [...document.querySelectorAll(".pv-plane input")].map((input) => +input.value);
    })()""")
    assert corner == [0, 14]
    assert chromium.run(shown) == "0% 0%"


def test_a_rectangle_marks_the_same_data_in_both_views(chromium, comparison):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    chromium.open(comparison)
    chromium.run("document.querySelector('#data-view').scrollIntoView({behavior: 'instant'})")
    box = chromium.run("""(() => {
        const b = document.querySelector("#data-view .pv-chart svg").getBoundingClientRect();
        return [b.left, b.top, b.width, b.height];
    })()""")
    faint = "document.querySelectorAll('#data-view .mark-symbol path[opacity=\"0.12\"]').length"
    assert chromium.run(faint) == 0
    low = {"x": box[0] + 0.15 * box[2], "y": box[1] + 0.4 * box[3]}
    high = {"x": box[0] + 0.25 * box[2], "y": box[1] + 0.8 * box[3]}
    button = {"button": "left", "buttons": 1, "clickCount": 1}
    chromium.call("Input.dispatchMouseEvent", type="mousePressed", **low, **button)
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", **high, **button)
    chromium.call("Input.dispatchMouseEvent", type="mouseReleased", **high, **button)
    chromium.wait(f"{faint} > 0")
    assert chromium.run(faint) % 2 == 0, "as many in the left view as in the right one"


def test_without_scripts_everything_but_the_controls_is_there(chromium, page):
    chromium.open(page, scripts=False)
    tree = chromium.call("DOM.getDocument", depth=0)["root"]["nodeId"]
    for query in ("[data-js]:not([hidden])", ".pv-control:not([hidden])"):
        assert chromium.call("DOM.querySelectorAll", nodeId=tree, selector=query)["nodeIds"] == []
    drawn = "figure:not([hidden]) :is(svg.pv-svg, img)"
    figures = chromium.call("DOM.querySelectorAll", nodeId=tree, selector=drawn)["nodeIds"]
    assert len(figures) >= 6
    for figure in figures:
        shown = chromium.call("DOM.getBoxModel", nodeId=figure)["model"]
        assert shown["width"] > 60


def test_a_page_prints(chromium, page):
    chromium.open(page, dark=True)
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.run("getComputedStyle(document.querySelector('html')).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert chromium.call("Page.printToPDF", printBackground=True)["data"]
