"""EM's variations on data that call for them: acceleration, batches, annealing, hard and drawn assignments.

python examples/em_variations.py
"""

import torch

import ppl_vae as pv


def overlapping(n, seed=1):
    """Three normals that overlap, on which EM creeps."""
    covariance = torch.tensor([[1.0, 0.3], [0.3, 1.0]]).expand(3, 2, 2)
    locs = [[0.0, 0.0], [1.5, 1.0], [-1.5, 1.5]]
    return pv.data.gaussian_mixture(n, [0.3, 0.3, 0.4], locs, covariance, seed=seed)[0]


def two_small_beside_a_large(n):
    """Seeds of k-means++ fall into the large cluster, and one component has to serve both small ones."""
    covariances = torch.eye(2) * torch.tensor([1.0, 1.0, 9.0])[:, None, None]
    return pv.data.gaussian_mixture(n, [0.1, 0.1, 0.8], [[0.0, 0.0], [0.0, 4.0], [30.0, 0.0]], covariances)[0]


def main(n=2000):
    gmm = pv.models.GaussianMixture(3, 2)

    def fit(x, **settings):
        return pv.EM(progress=False, **settings).fit(gmm, x)

    # Acceleration: the same maximum in a third of the passes over the data, or less.
    x = overlapping(n)
    plain, fast = fit(x, seed=1, tol=1e-9), fit(x, seed=1, tol=1e-9, accelerate="squarem")
    steps = [run.trace["e_steps"][-1].item() for run in (plain, fast)]
    print(f"E-steps: EM {steps[0]}, SQUAREM {steps[1]}")
    assert 3 * steps[1] <= steps[0]
    assert fast.trace["bound"][-1] > plain.trace["bound"][-1] - 0.01

    # Batches: after as many passes over the data online EM is ahead.
    large = overlapping(25 * n)
    online, full = fit(large, batch_size=250, max_iter=2), fit(large, max_iter=6)
    passes = [run.trace["e_steps"][-1].item() for run in (online, full)]
    print(f"log p(X): online {online.trace['bound'][-1]:.1f} in {passes[0]} passes, ", end="")
    print(f"EM {full.trace['bound'][-1]:.1f} in {passes[1]}")
    assert passes[0] <= passes[1]
    assert online.trace["bound"][-1] > full.trace["bound"][-1]

    # Annealing: starts that end at different maxima come to one.
    y = two_small_beside_a_large(600)
    ends = {
        name: torch.stack([fit(y, seed=seed, **settings).trace["bound"][-1] for seed in range(4)])
        for name, settings in {"EM": {}, "annealed": {"temperature": pv.linear(5.0, 1.0, 20)}}.items()
    }
    print("ends of four starts:", {name: [round(end, 1) for end in bounds.tolist()] for name, bounds in ends.items()})
    assert ends["annealed"].min() > ends["EM"].min() + 10
    assert ends["annealed"].max() - ends["annealed"].min() < 0.1

    # Hard assignments climb the classification likelihood, drawn ones walk about the maximum; the likelihood itself is
    # reported beside either.
    hard = fit(x, assignment="hard", start=fast)
    drawn = fit(x, assignment="stochastic", start=fast, max_iter=60)
    best = fast.trace["bound"][-1]
    print(
        f"log p(X): soft {best:.1f}, hard {hard.trace['bound'][-1]:.1f}, drawn {drawn.trace['bound'][20:].mean():.1f}"
    )
    kept = hard.trace["segment"].diff() == 0  # between repairs, which hard assignments need more often
    assert bool((hard.trace["objective"].diff()[kept] >= -1e-6).all())
    assert hard.trace["bound"][-1] < best
    assert best - 40 < drawn.trace["bound"][20:].mean() < best


if __name__ == "__main__":
    main()
