"""EM for Gaussian mixtures side by side with scikit-learn: same data, same start, same iterations, in one run.

    python benchmarks/em.py                      # the table, two threads
    python benchmarks/em.py --sweep              # cost against n, d and K
    python benchmarks/em.py --device cuda        # the same table with ppl_vae on a GPU

Prints for each problem the median over interleaved rounds of milliseconds per iteration, from the third to the fiftieth
(the difference between two fits, so that neither start nor last check counts; the others' iterations cost the same
whatever the parameters, so that theirs are the third to the twelfth), the ratio, how far the log-likelihoods
are apart (more than 1e-8 of them ends the benchmark: it would compare different things), how much of the machine's own
float64 matrix-product rate the products over all pairs of a datum and a component would take, and the peak memory of a
fit beyond the data. An E-step computes no pair that cannot matter, so that rate may be passed where clusters are apart;
the problems marked "overlapping" have none to leave out.
"""

import argparse
import datetime
import json
import logging
import math
import platform
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import ppl_vae as pv

SEED = 0
SKLEARN_FORMS = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}


@dataclass(frozen=True)
class Problem:
    """A mixture of K spherical clusters of unit variance, their centres drawn from N(0, apart^2 I)."""

    n: int
    d: int
    K: int
    form: str
    apart: float = 3.0

    def data(self):
        rng = np.random.default_rng(SEED)
        centres = self.apart * rng.normal(size=(self.K, self.d))
        return centres[rng.integers(self.K, size=self.n)] + rng.normal(size=(self.n, self.d))

    @lru_cache  # noqa: B019
    def start(self):
        """Weights, means and covariances to begin with, in scikit-learn's shapes."""
        means = np.random.default_rng(SEED + 1).choice(self.data(), self.K, replace=False)
        covariance = {
            "full": np.tile(np.eye(self.d), (self.K, 1, 1)),
            "tied": np.eye(self.d),
            "diagonal": np.ones((self.K, self.d)),
            "spherical": np.ones(self.K),
        }[self.form]
        return np.full(self.K, 1 / self.K), means, 4 * covariance

    def flops(self):
        """Of both matrix products of an iteration over the distinct features (1, y, y y')."""
        features = {
            "full": 1 + self.d + self.d * (self.d + 1) // 2,
            "tied": 1 + self.d + self.d * self.d / self.K,
            "diagonal": 1 + 2 * self.d,
            "spherical": 2 + self.d,
        }[self.form]
        return 4 * self.n * self.K * features

    def __str__(self):
        return f"{self.n:,} x {self.d}, K = {self.K}, {self.form}" + (", overlapping" if self.apart < 3 else "")


GOALS = {
    Problem(100_000, 2, 3, "full"): 20,
    Problem(100_000, 8, 8, "full"): 15,
    Problem(200_000, 16, 16, "full"): 20,
    Problem(50_000, 50, 10, "full"): 6,
    Problem(200_000, 64, 64, "diagonal"): 10,
    Problem(100_000, 8, 8, "tied"): None,
    Problem(100_000, 8, 8, "diagonal"): None,
    Problem(100_000, 8, 8, "spherical"): None,
    Problem(50_000, 16, 16, "full", apart=1.0): None,
    Problem(20_000, 64, 64, "diagonal", apart=0.5): None,
}
SWEEP = [
    *(Problem(n, 8, 8, "full") for n in (1_000, 10_000, 100_000, 1_000_000)),
    *(Problem(50_000, d, 8, "full") for d in (2, 4, 16, 32, 64)),
    *(Problem(50_000, 8, K, "full") for K in (2, 16, 64)),
]


def fit_sklearn(problem, x, iterations):
    weights, means, covariance = problem.start()
    precision = np.linalg.inv(covariance) if problem.form in ("full", "tied") else 1 / covariance
    mixture = GaussianMixture(
        problem.K,
        covariance_type=SKLEARN_FORMS[problem.form],
        max_iter=iterations,
        tol=0,
        reg_covar=0,
        weights_init=weights,
        means_init=means,
        precisions_init=precision,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = time.perf_counter()
        mixture.fit(x)
        return time.perf_counter() - begin, mixture.lower_bound_ * problem.n, mixture.n_iter_


def fit_ours(problem, x, iterations, device="cpu"):
    weights, means, covariance = (torch.tensor(value) for value in problem.start())  # some are changed in place
    start = {"mixing.probs": weights, "components.loc": means, "components.covariance": covariance}
    model = pv.models.GaussianMixture(problem.K, problem.d, covariance=problem.form).to(device)
    begin = time.perf_counter()
    fit = pv.EM(start=start, max_iter=iterations, tol=0, progress=False).fit(model, x)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, fit.trace["bound"][-1].item(), len(fit.trace["bound"])


def fit_pomegranate(problem, x, iterations):
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    weights, means, covariance = (torch.tensor(value) for value in problem.start())  # some are changed in place
    kind = {"full": "full", "diagonal": "diag"}[problem.form]
    components = [Normal(m, c, covariance_type=kind) for m, c in zip(means, covariance, strict=True)]
    model = GeneralMixtureModel(components, priors=weights, max_iter=iterations, tol=-1e300)
    begin = time.perf_counter()
    model.fit(torch.as_tensor(x))
    return time.perf_counter() - begin, None, iterations


def fit_torchgmm(problem, x, iterations):
    from torchgmm.bayes import GaussianMixture as TorchGmm

    model = TorchGmm(problem.K, covariance_type=SKLEARN_FORMS[problem.form], convergence_tolerance=0)
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    model.trainer_params = {**model.trainer_params, "max_epochs": iterations, **silent}
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    begin = time.perf_counter()
    model.fit(torch.as_tensor(x, dtype=torch.float32))
    return time.perf_counter() - begin, None, iterations


PEERS = {"pomegranate": fit_pomegranate, "torchgmm": fit_torchgmm}


def installed(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def matrix_rate():
    """Float64 matrix products of this machine, in 1e9 operations a second."""
    a = torch.randn(2000, 2000, dtype=torch.float64)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begin)
    return 2 * 2000**3 / min(times) / 1e9


SHORT, LONG, OTHERS = 2, 50, 12
LASTS = 0.5
"""Seconds of fits in one round: what is shorter is the median of several, for its noise is as large as it is."""


def per_iteration(fit, problem, x, long):
    """Seconds per iteration: those that were made count, for a fit may arrive where no iteration gains anything."""
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < LASTS:
        (few, _, first), (many, _, last) = fit(problem, x, SHORT), fit(problem, x, long)
        times.append((many - few) / (last - first))
    return statistics.median(times)


AGREE = 1e-8
"""Relative difference of log-likelihoods that rounding may make."""


def measure(problem, rounds, device):
    x = problem.data()
    peers = {"ppl_vae": lambda *a: fit_ours(*a, device), "sklearn": fit_sklearn}
    peers |= {name: fit for name, fit in PEERS.items() if installed(name) and problem.form in ("full", "diagonal")}
    each = {name: [] for name in peers}
    for fit in peers.values():
        fit(problem, x, SHORT)  # libraries load on first use
    for _ in range(rounds):
        for name, fit in peers.items():
            each[name].append(per_iteration(fit, problem, x, LONG if name == "ppl_vae" else OTHERS))
    (_, ours, _), (_, reference, _) = (fit(problem, x, 20) for fit in (peers["ppl_vae"], fit_sklearn))
    gap = abs(ours - reference) / abs(reference)
    if not gap <= AGREE:
        raise SystemExit(f"{problem}: log-likelihoods {ours} and {reference} after 20 iterations from one start")
    ratios = [theirs / own for own, theirs in zip(each["ppl_vae"], each["sklearn"], strict=True)]
    milliseconds = {name: 1e3 * statistics.median(times) for name, times in each.items()}
    return milliseconds.pop("ppl_vae"), milliseconds.pop("sklearn"), ratios, gap, milliseconds


def peak_memory(problem):
    """Peak resident memory of a fit beyond data and imports, MB, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", json.dumps(astuple(problem))]
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def memory_of(problem):
    """Prints how far a fit's peak rises above what the process holds before it; Linux only."""
    x = problem.data()
    fit_ours(Problem(2000, problem.d, problem.K, problem.form), x[:2000], 2)  # libraries load on first use
    problem.start()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_field("VmRSS")
    fit_ours(problem, x, 3)
    print(status_field("VmHWM") - before)


def status_field(name):
    """A field of this process's status, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--memory-of")
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory_of(Problem(*json.loads(arguments.memory_of)))
        return
    rate = matrix_rate()
    machine = platform.processor() or platform.machine()
    print(f"date {datetime.date.today()}, seed {SEED}, {machine}, device {arguments.device}")
    print(f"python {platform.python_version()}, torch {torch.__version__}, scikit-learn {sklearn.__version__}")
    print(f"{torch.get_num_threads()} threads, float64 matrix products {rate:.0f} GFLOP/s, {arguments.rounds} rounds\n")
    print(f"{'problem':51} {'ms':>8} {'sklearn':>8} {'ratio':>6} {'range':>13}", end=" ")
    print(f"{'goal':>5} {'of rate':>7} {'gap':>8} {'MB':>6}")
    problems = SWEEP if arguments.sweep else GOALS
    for problem in problems:
        ms, sk, ratios, gap, others = measure(problem, arguments.rounds, arguments.device)
        share = problem.flops() / (ms / 1e3) / 1e9 / rate
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        print(
            f"{problem!s:51} {ms:8.2f} {sk:8.1f} {statistics.median(ratios):6.1f} {spread:>13} "
            f"{GOALS.get(problem) or '':>5} {share:7.0%} {gap:8.0e} {peak_memory(problem):6.0f}"
            + "".join(f"  {name} {value:.1f} ms" for name, value in others.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
