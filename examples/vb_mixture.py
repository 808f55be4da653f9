"""How many components, and how sure: a Gaussian mixture by variational Bayes EM, which answers both in closed form."""

import math

import torch

import ppl_vae as pv

CENTERS = torch.tensor([[0.0, 0.0], [4.0, 1.0], [1.0, 5.0]])


def data(n):
    """Three clusters of unit variance; a quarter of the rows lack one of their two entries."""
    z = torch.randint(3, (n,))
    x = CENTERS[z] + torch.randn(n, 2)
    gaps = torch.arange(n)[: n // 4]
    x[gaps, gaps % 2] = torch.nan
    return x


def main(n=300, starts=5):
    torch.manual_seed(0)
    train, test = data(n), data(n)
    fits = {
        K: pv.VB(n_init=starts, progress=False).fit(pv.models.GaussianMixture(K, 2, prior="weak"), train)
        for K in range(1, 6)
    }
    # The bound is on log p(X | K). A solution has K! twins under other labels, and q is one of them: add log K!.
    evidence = {K: fit.trace["bound"][-1].item() + math.lgamma(K + 1) for K, fit in fits.items()}
    for K, value in evidence.items():
        print(f"K = {K}: log p(X) at least {value:.1f} nats")
    assert max(evidence, key=evidence.__getitem__) == 3

    best = fits[3]
    assert bool((best.trace["bound"].diff() >= -1e-9 * best.trace["bound"].abs().max()).all())
    q = best.q["components"]
    draws = best.draws["components.loc"][0]
    lower, upper = draws.quantile(torch.tensor([0.005, 0.995], dtype=draws.dtype), 0)
    for center in CENTERS:
        k = torch.cdist(center[None].double(), q.loc).argmin().item()
        print(f"center {center.tolist()}: {q.loc[k, 0]:.2f}, {q.loc[k, 1]:.2f}, 99% from draws of q(theta)")
        assert bool(((lower[k] < center) & (center < upper[k])).all()), (center, lower[k], upper[k])

    em = pv.EM(n_init=starts, estimate="ml", progress=False).fit(pv.models.GaussianMixture(5, 2), train)
    table = pv.compare({"VB, K = 3": best, "EM, K = 5": em}, test)
    print(table)
    assert table.rows["VB, K = 3"].log_predictive > table.rows["EM, K = 5"].log_predictive


if __name__ == "__main__":
    main()
