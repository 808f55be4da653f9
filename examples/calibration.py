"""Whether a posterior is as wide as it says: calibration of variational Bayes where it is exact, and where not."""

import sys

import torch

import ppl_vae as pv


def main(simulations=150, figure=None):
    # One normal: q(theta) is the conjugate posterior itself, so ranks are uniform.
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    engine = pv.VB(num_draws=100, progress=False)
    one = pv.models.GaussianMixture(1, 1, prior="weak")
    one.adapt(x)  # a weak prior takes its scale from data, and then stays as it is
    exact = pv.calibrate(one, engine, num_simulations=simulations, n=20)
    print(exact)
    assert exact.ok

    # Two that overlap: q(theta) q(z) cannot hold what theta and z know of each other, and is too narrow.
    two = pv.models.GaussianMixture(2, 1, prior="weak")
    two.adapt(x)
    narrow = pv.calibrate(two, engine, num_simulations=simulations, n=20)
    print(narrow)
    assert not narrow.ok
    if figure:
        narrow.plot().figure.savefig(figure)


if __name__ == "__main__":
    main(figure=sys.argv[1] if len(sys.argv) > 1 else None)
