"""k-means is EM with hard assignments and normals that neither weigh nor spread differently; EM goes on from there."""

import numpy as np
import torch
from sklearn.cluster import KMeans

import ppl_vae as pv


def main():
    x = pv.data.faithful().values
    x = (x - x.mean(0)) / x.std(0)
    start = {"components.loc": x[:2], "components.covariance": torch.ones(2)}
    frozen = ("mixing.probs", "components.covariance")

    # The same start for both: the same centres, labels and sum of squares.
    model = pv.models.GaussianMixture(2, 2, covariance="spherical")
    hard = pv.EM(start=start, assignment="hard", frozen=frozen, tol=0, progress=False).fit(model, x)
    theirs = KMeans(2, init=x[:2].numpy(), n_init=1, tol=0).fit(x.numpy())
    centers, labels = hard.parameters["components.loc"], hard.labels(x)
    print("centres", centers.tolist(), "sum of squares", theirs.inertia_)
    assert np.allclose(centers, theirs.cluster_centers_, rtol=0, atol=1e-10)
    assert (labels.numpy() == theirs.labels_).all()
    assert np.isclose((x - centers[labels]).square().sum(), theirs.inertia_)

    # The other way from EM to k-means: the smaller the common variance, the nearer.
    gaps = []
    for variance in (0.5, 0.05, 0.005):
        start["components.covariance"] = torch.full((2,), variance)
        soft = pv.EM(start=start, frozen=frozen, progress=False).fit(model, x)
        gaps.append((soft.parameters["components.loc"] - centers).abs().max().item())
    print("distance of soft EM's means at variances 0.5, 0.05, 0.005:", [f"{gap:.1e}" for gap in gaps])
    assert gaps[0] > gaps[1] > gaps[2]

    # What k-means fixes, a mixture estimates: from the same centres on, the likelihood gains.
    r = hard.responsibilities(x).round()
    mixture = pv.EM(start=r, progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    gain = (mixture.log_prob(x) - hard.log_prob(x)).mean().item()
    print(f"a full mixture gains {gain:.2f} nats per datum")
    assert gain > 0.5


if __name__ == "__main__":
    main()
