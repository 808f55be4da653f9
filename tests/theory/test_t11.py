"""T11: k-means as hard EM, and as the limit of EM when a common variance goes to zero."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

import ppl_vae as pv

FROZEN = ("mixing.probs", "components.covariance")


def blobs(n, d, K, seed):
    generator = torch.Generator().manual_seed(seed)
    locs = 2 * torch.randn(K, d, generator=generator, dtype=torch.float64)
    return pv.data.gaussian_mixture(n, [1 / K] * K, locs, torch.eye(d).expand(K, d, d), seed=seed)[0]


def lloyd(x, centers, weights=None):
    theirs = KMeans(len(centers), init=centers.numpy(), n_init=1, tol=0, max_iter=1000, algorithm="lloyd")
    return theirs.fit(x.numpy(), sample_weight=None if weights is None else weights.numpy())


def em(x, centers, variance, weights=None, **settings):
    """EM of normals of equal weight and one variance, which do not move."""
    start = {"components.loc": centers, "components.covariance": torch.full((len(centers),), variance)}
    model = pv.models.GaussianMixture(len(centers), x.shape[1], "spherical")
    engine = pv.EM(start=start, frozen=FROZEN, tol=0, max_iter=1000, progress=False, **settings)
    return engine.fit(model, x, weights)


@pytest.mark.parametrize(("n", "d", "K"), [(300, 2, 3), (1000, 5, 8), (272, 2, 2)])
@pytest.mark.parametrize("variance", [1.0, 100.0])
def test_t11_hard_em_is_k_means(n, d, K, variance):
    x = pv.data.faithful().values if n == 272 else blobs(n, d, K, seed=1)
    centers = x[:: n // K][:K].clone()
    theirs, ours = lloyd(x, centers), em(x, centers, variance, assignment="hard")
    found = ours.parameters["components.loc"]
    np.testing.assert_allclose(found.numpy(), theirs.cluster_centers_, rtol=0, atol=1e-10 * float(x.abs().max()))
    np.testing.assert_array_equal(ours.labels(x).numpy(), theirs.labels_)
    inertia = (x - found[ours.labels(x)]).square().sum().item()
    assert inertia == pytest.approx(theirs.inertia_, rel=1e-10)
    # The classification likelihood is the inertia, up to a scale and a constant that the frozen parameters fix.
    constant = -n * (np.log(K) + d / 2 * np.log(2 * np.pi * variance))
    assert ours.trace["objective"][-1].item() == pytest.approx(constant - inertia / (2 * variance), rel=1e-10)
    assert bool((ours.trace["objective"].diff() >= -1e-9 * abs(constant)).all())
    assert ours.status.code == "converged"


def test_t11_weighted_hard_em_is_weighted_k_means():
    x, weights = blobs(400, 3, 4, seed=2), torch.linspace(0, 3, 400, dtype=torch.float64)
    centers = x[100:104].clone()
    theirs, ours = lloyd(x, centers, weights), em(x, centers, 1.0, weights, assignment="hard")
    np.testing.assert_allclose(ours.parameters["components.loc"].numpy(), theirs.cluster_centers_, rtol=0, atol=1e-9)


def test_t11_k_means_is_the_limit_of_a_small_variance():
    x = blobs(400, 2, 4, seed=3)
    centers = x[:4].clone()
    theirs = lloyd(x, centers).cluster_centers_
    gaps = [np.abs(em(x, centers, v).parameters["components.loc"].numpy() - theirs).max() for v in (0.3, 0.03, 0.0003)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-3


def test_t11_an_empty_cluster_is_restarted_and_reported():
    x = blobs(300, 2, 3, seed=4)
    centers = torch.cat([x[:2], torch.full((1, 2), 1e3, dtype=torch.float64)])
    ours = em(x, centers, 1.0, assignment="hard")
    assert any("components[2]" in note for note in ours.status.notes)
    assert ours.status.ok
    counts = ours.labels(x).bincount(minlength=3)
    assert bool((counts > 10).all())
    # Where it ends is a fixed point of Lloyd's iteration.
    theirs = lloyd(x, ours.parameters["components.loc"])
    np.testing.assert_allclose(ours.parameters["components.loc"].numpy(), theirs.cluster_centers_, rtol=0, atol=1e-9)
