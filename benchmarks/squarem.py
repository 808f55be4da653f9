"""E-steps that EM and EM(accelerate="squarem") need, on mixtures whose components overlap.

    python benchmarks/squarem.py                 # every problem, three seeds
    python benchmarks/squarem.py --seeds 1 --gap 1e-5

Both start at the same parameters. The best log-likelihood is the highest that either finds; counted are the E-steps,
refused extrapolations included, until a run is within `--gap` nats (of the total) of it. "-" is a run that did not
come there within its E-steps, or that ended at another maximum.
"""

import argparse
import statistics

import torch

import ppl_vae as pv

E_STEPS = 3000
SLOW = 200
"""E-steps from which on EM is slow: the last line is about these problems."""


def normals(n, weights, locs, covariance):
    locs = torch.as_tensor(locs)
    return lambda seed: pv.data.gaussian_mixture(n, weights, locs, covariance.expand(len(locs), -1, -1), seed=seed)[0]


def scattered(n, d, K, distance):
    def draw(seed):
        locs = distance * torch.randn(K, d, generator=torch.Generator().manual_seed(seed))
        return normals(n, [1 / K] * K, locs, torch.eye(d))(seed)

    return draw


SKEWED = torch.tensor([[1.0, 0.3], [0.3, 1.0]])
TRIPLE = normals(2000, [0.3, 0.3, 0.4], [[0.0, 0.0], [1.5, 1.0], [-1.5, 1.5]], SKEWED)

PROBLEMS = {
    "two in 1 dimension, full": (normals(2000, [0.4, 0.6], [[0.0], [2.0]], torch.eye(1)), 2, "full"),
    "three in 2 dimensions, full": (TRIPLE, 3, "full"),
    "three in 2 dimensions, units 1 and 1000": (lambda seed: TRIPLE(seed) * torch.tensor([1.0, 1000.0]), 3, "full"),
    "three in 3 dimensions, tied": (scattered(2000, 3, 3, 1.0), 3, "tied"),
    "four in 5 dimensions, diagonal": (scattered(2000, 5, 4, 1.0), 4, "diagonal"),
    "three on Old Faithful, full": (lambda seed: pv.data.faithful().values, 3, "full"),
}


def e_steps(fit, bound):
    pairs = zip(fit.trace["bound"].tolist(), fit.trace["e_steps"].tolist(), strict=True)
    return next((steps for reached, steps in pairs if reached >= bound), None)


def main(seeds=3, gap=1e-3, limit=E_STEPS):
    print(f"E-steps to within {gap:g} nats of the best log-likelihood\n")
    print(f"{'problem':42s} {'seed':>4s} {'EM':>6s} {'squarem':>8s} {'ratio':>6s}")
    ratios = []
    for name, (draw, K, form) in PROBLEMS.items():
        for seed in range(seeds):
            x = draw(seed).double()
            model = pv.models.GaussianMixture(K, x.shape[1], form)
            runs = [
                pv.EM(accelerate=kind, seed=seed, tol=0, max_iter=limit, progress=False).fit(model, x)
                for kind in (None, "squarem")
            ]
            for run in runs:
                assert (run.trace["objective"].diff() >= -1e-12 * run.trace["objective"].abs().max()).all()
            best = max(run.trace["bound"].max().item() for run in runs)
            plain, fast = (e_steps(run, best - gap) for run in runs)
            ratio = plain / fast if plain and fast else None
            ratios += [ratio] if ratio and plain >= SLOW else []
            shown = ["-" if value is None else str(value) for value in (plain, fast)]
            print(f"{name:42s} {seed:4d} {shown[0]:>6s} {shown[1]:>8s} {'-' if ratio is None else f'{ratio:.1f}':>6s}")
    print(
        f"\nwhere EM needs {SLOW} or more: median {statistics.median(ratios):.1f}, least {min(ratios):.1f} times fewer"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gap", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, default=E_STEPS, help="E-steps of each run")
    main(**vars(parser.parse_args()))
