"""Reports are one file, need no network, escape what they show, and say what the numbers say."""

import dataclasses
import re
from html.parser import HTMLParser

import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure

import ppl_vae as pv
from ppl_vae.compare import compare
from ppl_vae.fit import Status
from ppl_vae.infer.svi import SVI
from ppl_vae.report import fit_html, model_html, table_html, write_comparison, write_training
from ppl_vae.report.equations import equations
from ppl_vae.report.figures import drawing, new_figure, svg
from ppl_vae.report.page import write
from ppl_vae.report.words import training_warnings, verdict

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
    assert not re.findall(r"https?://", text), "an address in the page"
    assert "@import" not in text
    assert len(reader.ids) == len(set(reader.ids)), "an identifier twice"
    for image in reader.images:
        assert image["role"] == "img"
        assert image["aria-label"]
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
        assert "<img" not in text
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
    assert {"summary", "table", "data", "bound", "parameters", "predictive", "chains", "model", "reproduce"} <= {
        *reader.ids
    }
    assert len(reader.images) == 2 + 1 + 2 + 2 + 1  # ellipses, bound, predictive by feature, chains, graph
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert write_comparison(table, path, command="ppl-vae compare --seed 0").read_text() == text


def test_the_table_writes_its_report(table, tmp_path):
    assert table.report(tmp_path / "r.html").is_file()


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
    assert len(reader.images) == 2 + 2 + 1 + 1


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
    with pytest.raises(OSError, match="no space"):
        write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
