"""Digits: unsupervised clustering by the mixture VAE, and by mixtures of pixels, of PCA's codes and of a VAE's codes.

All 1,797 images of scikit-learn's digits (8 x 8, grey, divided by 16) are clustered into 10, without their labels, and
judged by them: accuracy under the best one-to-one matching of clusters and digits, adjusted Rand index, normalised
mutual information. Each EM is the best of 10 starts by its likelihood. Every row with a network is trained for the same
number of epochs, in batches of 128 by Adam at 2e-3; the two-stage mixture VAE spends half of them on a plain VAE.

Dimension and covariance of the codes were chosen by the bound of the two-stage mixture VAE after 200 epochs at seed 0,
never by the labels: 34.0 nats with 20 units and full covariances, 31.6 with 20 and diagonal ones, 30.3 with 10 and
full, 28.9 with 10 and diagonal, 19.7 with 5 and full. `--rows` takes these settings as well.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

import ppl_vae as pv

CLUSTERS, EPOCHS, BATCH, RATE, HIDDEN, UNITS, STARTS, DRAWS = 10, 400, 128, 2e-3, 128, 20, 10, 100
SEEDS = [0, 1, 2, 3, 4]


def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16).float(), torch.tensor(labels)


# How each row finds its clusters: from images, seed and epochs to labels [n] and what the run says of itself.


def k_means(x: Tensor, seed: int, epochs: int) -> tuple[Tensor, dict[str, Any]]:
    return torch.tensor(KMeans(CLUSTERS, n_init=STARTS, random_state=seed).fit_predict(x.numpy())), {}


def mixture(covariance: str) -> Callable[..., Any]:
    """This package's mixture on pixels."""

    def found(x: Tensor, seed: int, epochs: int) -> tuple[Tensor, dict[str, Any]]:
        fit = em(x, covariance, seed)
        return fit.labels(x), {"bound": fit.log_predictive(x).mean().item()}

    return found


def on_pca(size: int, covariance: str) -> Callable[..., Any]:
    """The same on the first principal components."""

    def found(x: Tensor, seed: int, epochs: int) -> tuple[Tensor, dict[str, Any]]:
        codes = torch.tensor(PCA(size, random_state=seed).fit_transform(x.double().numpy()))
        return em(codes, covariance, seed).labels(codes), {}

    return found


def on_codes(size: int, covariance: str) -> Callable[..., Any]:
    """EM on the posterior means of a VAE."""

    def found(x: Tensor, seed: int, epochs: int) -> tuple[Tensor, dict[str, Any]]:
        fit = train(vae(size, seed), x, seed, epochs)
        codes = fit.posterior(x).mean
        return em(codes, covariance, seed).labels(codes), said(fit, x)

    return found


def gmvae(size: int, covariance: str) -> Callable[..., Any]:
    """The mixture VAE from random weights."""

    def found(x: Tensor, seed: int, epochs: int) -> tuple[Tensor, dict[str, Any]]:
        plain = vae(size, seed)
        model = pv.models.GMVAE(plain.encoder, plain.decoder, CLUSTERS, "gaussian-learned", covariance)
        fit = train(model, x, seed, epochs)
        return clusters(fit, x, seed), said(fit, x)

    return found


def two_stage(size: int, covariance: str) -> Callable[..., Any]:
    """The mixture VAE from a VAE and EM on its codes."""

    def found(x: Tensor, seed: int, epochs: int) -> tuple[Tensor, dict[str, Any]]:
        first = train(vae(size, seed), x, seed, epochs // 2).model
        start = em(first.posterior(x).sample(), covariance, seed).parameters
        model = pv.models.GMVAE(first.encoder, first.decoder, CLUSTERS, first.likelihood, covariance)
        fit = train(model, x, seed, epochs - epochs // 2, start=start)
        return clusters(fit, x, seed), said(fit, x)

    return found


def vae(size: int, seed: int) -> pv.models.VAE:
    torch.manual_seed(seed)
    encoder, decoder = pv.nets.mlp_encoder(64, HIDDEN, size), pv.nets.mlp_decoder(size, HIDDEN, 64)
    return pv.models.VAE(encoder, decoder, "gaussian-learned")


def train(model: Any, x: Tensor, seed: int, epochs: int, start: Any = "auto") -> pv.Fit:
    engine = pv.SVI(epochs, BATCH, pv.adam(RATE), start=start, compile="trace", seed=seed, progress=False)
    return engine.fit(model, x)


def em(data: Tensor, covariance: str, seed: int) -> pv.Fit:
    model = pv.models.GaussianMixture(CLUSTERS, data.shape[1], covariance)
    return pv.EM(n_init=STARTS, seed=seed, progress=False).fit(model, data)


def clusters(fit: pv.Fit, x: Tensor, seed: int) -> Tensor:
    return fit.labels(x, seed=seed)


def said(fit: pv.Fit, x: Tensor) -> dict[str, Any]:
    return {"bound": fit.elbo(x, DRAWS).mean().item()}


ROWS = {
    "k-means, pixels": k_means,
    "mixture, pixels, spherical": mixture("spherical"),
    "mixture, pixels, diagonal": mixture("diagonal"),
    "mixture, pixels, tied": mixture("tied"),
    "mixture, pixels, full": mixture("full"),
    **{f"mixture, {size} PCA, {form}": on_pca(size, form) for size in (5, 10, 20) for form in ("diagonal", "full")},
    f"mixture, {UNITS} VAE codes": on_codes(UNITS, "full"),
    "GMVAE, from random": gmvae(UNITS, "full"),
    "GMVAE, two-stage": two_stage(UNITS, "full"),
}
SETTINGS = {
    f"{name}, {size}, {form}": make(size, form)
    for name, make in (("GMVAE", gmvae), ("two-stage", two_stage), ("codes", on_codes))
    for size in (5, 10, 20)
    for form in ("diagonal", "full")
}
"""What the setting of the last rows was chosen from."""


# Scores


def scores(found: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy under the best matching of clusters and labels, ARI and NMI."""
    counts = torch.zeros(CLUSTERS, CLUSTERS).index_put((found, truth), torch.ones(len(truth)), accumulate=True)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return {
        "accuracy": counts[rows, columns].sum().item() / len(truth),
        "ari": float(adjusted_rand_score(truth, found)),
        "nmi": float(normalized_mutual_info_score(truth, found)),
        "clusters used": len(found.unique()),
    }


def result(name: str, seed: int, arguments: Any) -> dict[str, Any]:
    """The record of one run, from its file if it is finished."""
    file = Path(arguments.folder) / f"clustering-{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    if file.exists():
        return json.loads(file.read_text())
    (x, truth), epochs = digits(), arguments.epochs or EPOCHS
    begin = time.perf_counter()
    found, more = {**ROWS, **SETTINGS}[name](x, seed, epochs)
    seconds = time.perf_counter() - begin
    record = {
        "row": name,
        "seed": seed,
        "epochs": epochs if "bound" in more and "mixture, pixels" not in name else None,
    }
    record |= {**scores(found, truth), **more, "seconds": seconds, **arguments.machine()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1))
    return record


# The table


def options(parser: Any) -> None:
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=[*ROWS, *SETTINGS], metavar="ROW")
    parser.add_argument("--epochs", type=int, help="other than the table's, to try things out")
    parser.set_defaults(seeds=SEEDS)


def run(arguments: Any) -> Any:
    for seed in arguments.seeds:
        for name in arguments.rows:
            yield result(name, seed, arguments)


def text(results: list[dict[str, Any]]) -> str:
    columns = {"accuracy": "accuracy, %", "ari": "ARI, %", "nmi": "NMI, %"}
    head = "".join(f"{title:>15}" for title in columns.values())
    lines = [f"{'clusters from':<30}{head}{'bound, nats':>13}{'seeds':>12}{'seconds':>9}"]
    for name in dict.fromkeys(record["row"] for record in results):
        mine = [record for record in results if record["row"] == name]
        cells = "".join(f"{spread([100 * r[key] for r in mine]):>15}" for key in columns)
        bound = f"{statistics.mean(r['bound'] for r in mine):.1f}" if "bound" in mine[0] else ""
        seconds, seeds = sum(r["seconds"] for r in mine), ",".join(str(r["seed"]) for r in mine)
        lines.append(f"{name:<30}{cells}{bound:>13}{seeds:>12}{seconds:>9.0f}")
    return "\n".join([*lines, *verdict(results)])


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def verdict(results: list[dict[str, Any]]) -> list[str]:
    """Whether networks find better clusters than a mixture alone, and whether the bound says which, in words."""
    kinds = {"GMVAE": "mixture VAE", "VAE codes": "EM on a VAE's codes"}
    plain = best(results, lambda name: name.startswith("mixture") and "codes" not in name)
    lines = []
    for part, kind in kinds.items():
        found = best(results, lambda name, part=part: part in name)
        if found and plain:
            word = "beats" if found[1] > plain[1] else "does not beat"
            lines.append(f"In mean accuracy {kind} ({found[0]}, {found[1]:.1f}%) {word} {plain[0]} ({plain[1]:.1f}%).")
    deep = best(results, lambda name: "VAE" in name), best(results, lambda name: "VAE" in name, "bound")
    if all(deep) and deep[0][0] != deep[1][0]:
        lines.append(f"The best bound, {deep[1][0]}, is not the best clustering, {deep[0][0]}.")
    return lines


def best(results: list[dict[str, Any]], chosen: Callable[..., bool], key: str = "accuracy") -> tuple[str, float] | None:
    """The row of the highest mean, and that, in per cent for an accuracy."""
    unit = 100 if key == "accuracy" else 1
    names = [name for name in dict.fromkeys(record["row"] for record in results) if chosen(name)]
    means = {name: unit * statistics.mean(r[key] for r in results if r["row"] == name) for name in names}
    return max(means.items(), key=lambda item: item[1]) if means else None
