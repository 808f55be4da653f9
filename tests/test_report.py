"""Reports are one file, need no network, escape what they show, and say what the numbers say."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import pyro.distributions as dist
import pytest
import torch
from example_models import make
from matplotlib import image
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import ppl_vae as pv
from ppl_vae.compare import compare
from ppl_vae.fit import Status
from ppl_vae.infer.svi import SVI
from ppl_vae.report import fit_html, model_html, table_html, write_comparison, write_training
from ppl_vae.report.equations import equations
from ppl_vae.report.figures import drawing, new_figure, svg
from ppl_vae.report.methods import comparison_methods
from ppl_vae.report.page import write
from ppl_vae.report.plane import SIDE, latent_plane
from ppl_vae.report.steps import em_steps
from ppl_vae.report.words import training_warnings, verdict

RUNTIME = re.compile(r"<script>(?=.{0,2000}function).*?window\.vegaLite=.*?</script>", re.DOTALL)
VOID = {"meta", "link", "br", "img", "hr", "input"}
CARD = 60_000
PAGE = 5_000_000


class Reader(HTMLParser):
    """Checks that tags are balanced, and collects what a browser would fetch and identifiers."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.ids, self.images, self.text = [], [], [], [], ""

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action") and v]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "svg":
            self.images.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open, f"never closed: {reader.open}"
    for target in reader.fetched:
        assert target.startswith(("#", "data:")), target
    # The runtime of the linked views names addresses; the page forbids to ask any, which test_report_browser.py sees.
    assert not re.findall(r"https?://", RUNTIME.sub("", text)), "an address in the page"
    assert "@import" not in text
    assert len(reader.ids) == len(set(reader.ids)), "an identifier twice"
    for figure in reader.images:
        assert figure["role"] == "img"
        assert figure["aria-label"]
    return reader


@pytest.fixture(scope="module")
def geyser():
    return pv.data.faithful()


@pytest.fixture(scope="module")
def model():
    return pv.models.GaussianMixture(2, 2, prior="weak")


@pytest.fixture(scope="module")
def em(model, geyser):
    return pv.EM(n_init=2, progress=False).fit(model, geyser)


@pytest.fixture(scope="module")
def sampled(em):
    """Draws round EM's answer, four chains: what the page needs of NUTS, without its minutes."""
    noise = torch.Generator().manual_seed(0)
    draws = {
        k: v * (1 + 0.02 * torch.randn(4, 250, *v.shape[2:], generator=noise, dtype=v.dtype))
        for k, v in em.draws.items()
    }
    draws["mixing.probs"] = draws["mixing.probs"] / draws["mixing.probs"].sum(-1, keepdim=True)
    square = draws["components.covariance"]
    draws["components.covariance"] = (square + square.mT) / 2
    stats = {"diverging": torch.zeros(4, 250, dtype=torch.bool)}
    return dataclasses.replace(
        em, engine="NUTS", draws=draws, trace={}, sample_stats=stats, status=Status("finished", "4 chains")
    )


@pytest.fixture(scope="module")
def table(em, sampled):
    return compare({"EM": em, "NUTS": sampled})


@pytest.fixture(scope="module")
def trained():
    data = pv.data.images("digits", binarize="dynamic")
    model = pv.models.VAE(pv.nets.mlp_encoder(64, 16, 3), pv.nets.mlp_decoder(3, 16, 64))
    fit = SVI(epochs=2, batch_size=256, validation=data.validation, progress=False).fit(model, data.train)
    return data, fit, fit.evaluate(data.test, num_particles=5)


def test_cards_are_small_and_static(model, em, sampled, table, trained):
    _, fit, _ = trained
    for text in (model_html(model), fit_html(em), fit_html(sampled), table_html(table), fit_html(fit)):
        assert len(text.encode()) < CARD
        assert "prefers-color-scheme: dark" in text
        assert "<script" not in text
        read(text)


def test_representations_are_the_cards(model, em, table):
    assert model._repr_html_() == model_html(model)
    assert em._repr_html_() == fit_html(em)
    assert table._repr_html_() == table_html(table)


def test_model_card_says_equations_and_next_calls(model):
    text = read(model_html(model)).text
    for part in ("p(z)", "Categorical(pi)", "p(x | z)", "p(components.loc)", "pv.EM().fit(model, x)", "pv.NUTS()"):
        assert part in text
    vae = pv.models.VAE(pv.nets.mlp_encoder(4, 4, 1), pv.nets.mlp_decoder(1, 4, 4))
    text = read(model_html(vae)).text
    assert "q(z | x)" in text
    assert "pv.EM" not in text
    assert "pv.NUTS" not in text


def test_equations_without_docstrings_are_the_source():
    class Coin(pv.LatentVariableModel):
        @pv.latent(shared=True)
        def bias(self):
            return dist.Beta(2.0, 2.0)

        @pv.observed
        def x(self, bias):
            return dist.Bernoulli(bias)

    assert equations(Coin()) == [("p(bias)", "dist.Beta(2.0, 2.0)"), ("p(x | bias)", "dist.Bernoulli(bias)")]


def test_everything_is_escaped(em, geyser, tmp_path):
    class Model(pv.models.GaussianMixture):
        """<script>alert(1)</script>"""

    bad = '<img src="x" onerror="alert(1)">'
    named = dataclasses.replace(geyser, columns=(bad, "b"))
    fit = pv.EM(progress=False).fit(Model(2, 2), named)
    fit = dataclasses.replace(fit, status=Status("finished", bad))
    page = write_comparison(compare({bad: fit}), tmp_path / "r.html", command=bad).read_text()
    for text in (model_html(fit.model), fit_html(fit), table_html(compare({bad: fit})), page):
        read(text)
        assert "<img" not in RUNTIME.sub("", text)
        assert "<script>alert" not in text
    assert bad in read(page).text


def test_comparison_page(table, tmp_path):
    path = write_comparison(table, tmp_path / "deep" / "report.html", command="ppl-vae compare --seed 0")
    text = path.read_text()
    assert text.startswith("<!doctype html>")
    assert len(text.encode()) < PAGE
    reader = read(text)
    assert not any(c.strip() for c in re.findall(r"<!--(.*?)-->", text))
    for part in ("Trust NUTS here", "ppl-vae compare --seed 0", "90% interval", "log p(X | θ)", "torch", "Seed 0"):
        assert part in reader.text, part
    assert {
        "summary",
        "table",
        "data",
        "bound",
        "parameters",
        "predictive",
        "chains",
        "model",
        "reproduce",
        "steps",
        "explore",
        "methods",
        "pareto",
    } <= {*reader.ids}
    assert len(reader.images) == 2 + 2 + 1 + 2 + 1 + 2 + 1  # ellipses, EM, bound, predictive, Pareto, chains, graph
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_the_table_writes_its_report_the_same_twice(em, tmp_path):
    table = compare({"EM": em})
    assert table.report(tmp_path / "a.html").read_text() == table.report(tmp_path / "b.html").read_text()


def test_verdict_trusts_only_chains_that_agree(em, sampled):
    assert verdict(compare({"EM": em, "NUTS": sampled}))[0].startswith("Trust NUTS here")
    apart = {k: v.clone() for k, v in sampled.draws.items()}
    apart["components.loc"][0] += 1.0
    bad = dataclasses.replace(sampled, draws=apart)
    said = verdict(compare({"EM": em, "NUTS": bad}))
    assert said[0].startswith("Do not trust NUTS yet")
    assert not any("standard deviations" in s for s in said)
    assert "No sampler" in verdict(compare({"EM": em}))[0]


def test_verdict_measures_distance_in_standard_deviations(em, sampled):
    moved = {k: v.clone() for k, v in em.draws.items()}
    sd = sampled.draws["components.loc"][..., 0, 0].std()
    moved["components.loc"][..., 0, 0] = sampled.draws["components.loc"][..., 0, 0].mean() + 3 * sd
    far = dataclasses.replace(em, draws=moved)
    said = " ".join(verdict(compare({"EM": far, "NUTS": sampled})))
    assert "EM is at most 3.00 of NUTS's standard deviations from its mean (components.loc[0, 0])" in said


def test_training_page(trained, tmp_path):
    data, fit, found = trained
    reader = read(write_training(fit, found, data, tmp_path / "t.html", command="ppl-vae train").read_text())
    assert {"evaluation", "training", "pictures", "latent", "model", "reproduce"} <= {*reader.ids}
    for part in (f"{found.elbo:.4f}", f"{found.log_prob:.4f}", "KL per unit", "ppl-vae train", "q(z | x)"):
        assert part in reader.text, part
    assert len(reader.images) >= 2 + 2 + 1 + 1
    assert "diagnosis" in reader.ids
    for part in ("traversals", "aggregate posterior", "units against the prior"):
        assert part in reader.text, part


def test_training_page_of_codes_shows_their_use(tmp_path):
    data, net = pv.data.images("digits"), pv.nets.mlp_decoder
    torch.manual_seed(0)
    vq = pv.models.VQVAE(net(64, 16, 8), net(8, 16, 64), pv.codebooks.Averaged(8, 4), 2)
    one = pv.models.CategoricalVAE(net(64, 8, 5), net(5, 8, 64), 5, "gaussian-learned")
    for model, section, callbacks in ((vq, "diagnosis", [pv.CodebookUpdates()]), (one, "diagnosis", [])):
        fit = SVI(1, 256, compile="off", callbacks=callbacks, progress=False).fit(model, data.train)
        reader = read(write_training(fit, fit.evaluate(data.test, 5), data, tmp_path / "t.html").read_text())
        assert section in reader.ids
        assert "usage of z" in reader.text
        assert "codes used, perplexity" in reader.text


def test_training_page_of_a_conditional_model(tmp_path):
    model, data = make("conditional vae")
    fit = SVI(1, compile="off", progress=False).fit(model, data)
    page = write_training(fit, fit.evaluate(data, 5), data, tmp_path / "t.html", shape=(1, 2, 2))
    reader = read(page.read_text())
    assert {"pictures", "plane", "diagnosis"} <= {*reader.ids}
    assert "predictive" not in reader.ids
    assert "at the inputs of held-out data in turn" in reader.text
    assert "which training never saw" not in reader.text


def test_training_page_of_a_table(tmp_path):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    model = pv.models.VAE(pv.nets.mlp_encoder(3, 4, 2), pv.nets.mlp_decoder(2, 4, 3), "gaussian-learned")
    fit = SVI(epochs=1, progress=False).fit(model, x[:40])
    reader = read(write_training(fit, fit.evaluate(x[40:], 5), x[40:], tmp_path / "t.html").read_text())
    assert "predictive" in reader.ids
    assert "pictures" not in reader.ids


def test_training_warnings(trained):
    _, fit, found = trained
    assert any("rest on" in w for w in training_warnings(fit, dataclasses.replace(found, min_ess=1.5)))
    assert any("collapsed" in w for w in training_warnings(fit, dataclasses.replace(found, active_units=0)))
    over = dataclasses.replace(fit, trace={**fit.trace, "validation": torch.tensor([*[-20.0] * 6, *[-30.0] * 6])})
    assert any("overfits" in w for w in training_warnings(over, found))
    rising = dataclasses.replace(fit, trace={**fit.trace, "validation": torch.linspace(-90.0, -20.0, 20)})
    assert any("train longer" in w for w in training_warnings(rising, found))
    failed = dataclasses.replace(fit, status=Status("failed", "nan"))
    assert any("did not end well" in w for w in training_warnings(failed, found))


def test_a_figure_is_the_same_text_twice_and_has_ids_of_its_own():
    def draw(height):
        with drawing():
            figure = new_figure(2, 2)
            ax = figure.add_subplot()
            ax.plot([0, height], label="<b>")
            ax.legend()
            return svg(figure, 'a "figure" <b>')

    one, same, other = str(draw(1)), str(draw(1)), str(draw(2))
    assert one == same
    assert not {*read(one).ids} & {*read(other).ids}
    assert "currentColor" in one
    assert "<b>" not in one


def test_drawing_leaves_matplotlib_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with drawing():
        Figure()
    assert dict(mpl.rcParams) == before


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "r.html", "old")

    def fails(*_):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(pv.DataError, match=r"cannot write .*r\.html: the file system says 'no space'"):
        write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


# What was added to the figures.


def test_steps_are_the_iterations(em, geyser):
    steps = em_steps(em, em.data)
    assert len(steps.frames) == len(em.trace["bound"])
    last = {name: value[-1] for name, value in em.history.items() if name != "iteration"}
    assert all(torch.equal(last[name], value) for name, value in em.parameters.items())
    for frame, bound in zip(steps.frames, em.trace["bound"].tolist(), strict=True):
        assert f"{bound:.4f} nats" in frame["said"]
        assert len(frame["shapes"]) == 2
        assert len(frame["fills"]) == 3 * len(geyser)
    heights = [frame["dot"][1] for frame in steps.frames]
    assert heights == sorted(heights, reverse=True), "a bound that rises goes up on the page"


def test_steps_of_ellipses_are_where_the_parameters_say(em):
    """Ends of an ellipse's first arc: the mean is half way, in the coordinates of the axes."""
    steps = em_steps(em, em.data)
    ends = re.findall(r"(?:M|0 1 )([\d.-]+) ([\d.-]+)", steps.frames[-1]["shapes"][0])
    (a, b), (c, d) = [tuple(map(float, pair)) for pair in ends[:2]]
    x = em.data.values["x"]
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', str(steps.data))[: len(x)]
    places = torch.tensor([[float(v) for v in pair] for pair in dots], dtype=torch.float64)
    slope = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1).double(), places).solution
    center = torch.cat([em.parameters["components.loc"][0], torch.ones(1)]).double() @ slope
    assert ((a + c) / 2, (b + d) / 2) == pytest.approx(tuple(center.tolist()), abs=0.3)


def test_steps_on_the_line_and_without_a_history(geyser):
    x = geyser.values[:, 1:]
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 1), x)
    steps = em_steps(fit, fit.data)
    assert steps.flat
    assert len(steps.frames[0]["shapes"]) == 2
    assert em_steps(dataclasses.replace(fit, history={}), fit.data) is None


def test_the_plane_is_what_is_decoded():
    data = pv.data.images("digits", binarize="threshold")
    model = pv.models.VAE(pv.nets.mlp_encoder(64, 8, 2), pv.nets.mlp_decoder(2, 8, 64))
    fit = SVI(epochs=1, progress=False).fit(model, data.train)
    plane = latent_plane(fit, data.test, data.shape)
    picture = image.imread(io.BytesIO(base64.b64decode(plane.pictures.partition(",")[2])))[..., 0]
    assert picture.shape == (8 * SIDE, 8 * SIDE)
    for across, up in ((0, 0), (3, 14), (14, 7)):
        z = torch.tensor([[plane.units[0][across], plane.units[1][up]]])
        with torch.no_grad():
            mean = torch.sigmoid(fit.model.decoder(z)).reshape(8, 8)
        top = 8 * (SIDE - 1 - up)
        shown = torch.tensor(picture[top : top + 8, 8 * across : 8 * across + 8])
        assert torch.allclose(mean, shown, atol=0.01)
    three = pv.models.VAE(pv.nets.mlp_encoder(64, 8, 3), pv.nets.mlp_decoder(3, 8, 64))
    assert latent_plane(SVI(epochs=1, progress=False).fit(three, data.train), data.test, data.shape) is None


def test_methods_tell_what_was_done(em, sampled):
    text = comparison_methods({"EM": em, "NUTS": sampled}, em.data, has_loo=True)
    bound = em.trace["bound"]
    for part in ("272 observations", "eruptions, waiting", f"{bound[-1]:.2f} nats", f"{len(bound) - 1} iterations"):
        assert part in text
    assert "the best of 2 k-means++ starts" in text
    assert "none of 1000 transitions diverged" in text
    assert em.versions["torch"] in text


def test_without_altair_the_page_is_static(em, tmp_path, monkeypatch):
    from ppl_vae.report import comparison

    monkeypatch.setattr(comparison, "runtime", lambda: None)
    text = write_comparison(compare({"EM": em}), tmp_path / "r.html").read_text()
    assert "unsafe-eval" not in text
    assert "vega" not in re.sub(r"<script>.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)
    assert "explore" not in read(text).ids


def test_every_warning_is_worded_in_the_page(em, sampled, tmp_path):
    """R-hat, effective sample size, divergences, each made on purpose; they stand before the table."""
    apart = {k: v.clone() for k, v in sampled.draws.items()}
    apart["components.loc"][0] += 1.0
    diverging = torch.zeros(4, 250, dtype=torch.bool)
    diverging[0, :7] = True
    bad = dataclasses.replace(sampled, draws=apart, sample_stats={"diverging": diverging})
    text = read(write_comparison(compare({"EM": em, "NUTS": bad}), tmp_path / "r.html").read_text()).text
    head = text[: text.index("Comparison")]
    for part in ("R-hat of", "effective sample size of", "7 of 1000 transitions diverged", "Do not trust NUTS yet"):
        assert part in head, part


def luminance(shade):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(shade)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(model, scheme):
    """4.5 to 1 for text on what it stands on, 3 to 1 for the edges of controls."""
    found = re.findall(r"(--pv-[\w-]+): (#[0-9a-f]{6})", model_html(model))
    half = len(found) // 2
    shades = {
        name.removeprefix("--pv-"): luminance(value) for name, value in found[scheme * half : (scheme + 1) * half]
    }
    pairs = [("ink", "paper"), ("ink", "tint"), ("soft", "paper"), ("soft", "tint"), ("warn", "warn-tint")]
    for text, under, least in [*((a, b, 4.5) for a, b in pairs), ("link", "paper", 4.5), ("edge", "tint", 3.0)]:
        low, high = sorted([shades[text], shades[under]])
        assert (high + 0.05) / (low + 0.05) >= least, (text, under)
