"""Make the README's comparison: the picture in light and dark, and the table, which goes into README.md too.

Run from anywhere: python docs/make_readme_figure.py. It takes two or three minutes on two cores.
"""

import argparse
import datetime
import io
import math
import os
import platform
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

import ppl_vae as pv
from ppl_vae.compare import format_cell
from ppl_vae.plots import fit_ellipses

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- comparison: written by docs/make_readme_figure.py -->", "<!-- end of comparison -->"

COLUMNS = {
    "log_predictive": "log p(x) held out",
    "log_likelihood": "log p(X \\| θ)",
    "elbo_total": "bound on log p(X)",
    "gap": "gap of the bound",
    "bic": "BIC",
    "elpd_loo": "ELPD (LOO)",
    "rhat": "R-hat",
    "ess": "ESS",
    "ari": "ARI",
    "seconds": "seconds",
}

THEMES = {"light": ("#ffffff", "#24292f"), "dark": ("#0d1117", "#e6edf3")}


def fits(train):
    """Every engine on one declaration."""
    gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    pv.EM(progress=False).fit(gmm, train)  # imports made at first use are not EM's time
    engines = {
        "EM (ML)": pv.EM(n_init=10, estimate="ml", progress=False),
        "EM (MAP)": pv.EM(n_init=10, progress=False),
        "SVI": pv.SVI(epochs=1000, optimizer=pv.adam(1e-2), guide="multivariate", progress=False),
        "NUTS": pv.NUTS(num_samples=1000, warmup=500, num_chains=4, progress=False),
    }
    return {name: engine.fit(gmm, train) for name, engine in engines.items()}


def markdown(table):
    """The table in Markdown, with what it was made on below it."""
    heads = list(COLUMNS.values())
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for name, row in table.rows.items():
        cells = [format_cell(c, getattr(row, c)) or "·" for c in COLUMNS]
        cells[0] += f" ± {row.log_predictive_se:.2f}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"<sub>{conditions(table)}</sub>"]
    return "\n".join(lines)


def conditions(table):
    """Data, date, versions, hardware."""
    nuts = table.fits["NUTS"]
    versions = ", ".join(f"{k} {v}" for k, v in nuts.versions.items())
    return (
        f"Old Faithful: fitted to the first 200 eruptions, held out the last {len(table.data)}; nats, the first column "
        f"per datum, larger is better (BIC: smaller). A dot: the column has no meaning for that fit. NUTS by "
        f"{nuts.settings.get('sampler', 'pyro')}, {nuts.num_draws} draws. Made by docs/make_readme_figure.py on "
        f"{datetime.date.today().isoformat()} with {versions} on {os.cpu_count()} cores of a shared "
        f"{platform.machine()} machine, no GPU."
    )


def picture(found, theme):
    """One panel for each engine, in the colours of a theme."""
    paper, ink = THEMES[theme]
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "ppl_vae",
        "font.family": "sans-serif",
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        axes = figure.subplots(1, 3, sharex=True, sharey=True)
        titles = {"EM (ML)": "EM: one θ", "SVI": "SVI: q(θ)", "NUTS": "NUTS: draws of θ"}
        for ax, (name, title) in zip(axes, titles.items(), strict=True):
            fit_ellipses(found[name], ax=ax, order=component_order(found[name]))
            ax.set_title(title)
            ax.set_xlabel("eruption, minutes")
            ax.set_ylabel("waiting, minutes" if ax is axes[0] else "")
        with io.StringIO() as text:
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
            lines = [line.rstrip() for line in text.getvalue().splitlines()]
    target = HERE / "_static" / f"comparison-{theme}.svg"
    target.write_text("\n".join(lines) + "\n")
    return target


def component_order(fit):
    """Short eruptions first, so that the panels share their colours."""
    return fit.parameters["components.loc"][:, 0].argsort().tolist()


def main():
    """Fit, draw, print, and put the table between its marks in the README."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    x = pv.data.faithful().values
    found = fits(x[:200])
    table = pv.compare(found, x[200:])
    assert all(math.isfinite(row.log_predictive) for row in table.rows.values())
    for warning in table.warnings:
        print("!", warning)
    text = markdown(table)
    print(text)
    for theme in THEMES:
        print(picture(found, theme))
    content = README.read_text()
    before, after = content.split(BEGIN)[0], content.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
