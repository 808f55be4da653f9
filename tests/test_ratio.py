"""The bootstrap likelihood-ratio test of the number of components."""

import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv

QUICK = pv.EM(accelerate="squarem")


def normals(K):
    return pv.models.GaussianMixture(K, 1, covariance="tied")  # with one variance the likelihood has a maximum


def test_the_statistic_is_twice_the_difference_of_the_maxima():
    x = pv.data.faithful().values[:, 1]
    found = pv.likelihood_ratio_test(normals(1), normals(2), x, engine=QUICK, num_samples=9, progress=False)
    one, two = (pv.EM(n_init=5, progress=False).fit(normals(K), x).log_prob(x).sum() for K in (1, 2))
    assert found.statistic == pytest.approx(2 * (two - one).item(), rel=1e-5)
    assert found.p_value == 1 / 10  # the smallest that 9 replicates can give: two groups beyond doubt
    assert "9 of 9 replicates" in repr(found)


def test_replicates_are_those_of_one_group():
    """On data of one normal the statistic is an ordinary draw of its null distribution, and never negative."""
    torch.manual_seed(3)
    x = torch.randn(100, dtype=torch.float64)
    found = pv.likelihood_ratio_test(normals(1), normals(2), x, engine=QUICK, num_samples=9, progress=False)
    assert found.replicates.min() > -1e-4
    assert 0.05 < found.p_value <= 1
    # Twice the log-likelihood of two more parameters: of the order of two, far from 20.
    assert 0.2 < found.replicates.mean() < 8
    same = pv.likelihood_ratio_test(normals(1), normals(2), x, engine=QUICK, num_samples=3, progress=False)
    torch.testing.assert_close(same.replicates, found.replicates[:3])


def test_a_null_fit_that_misses_its_maximum_does_not_make_the_statistic_large():
    """One random start puts two of four centres into one group: D would be near 100, as it is of order two."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(20) + center for center in (-12.0, -4.0, 4.0, 12.0)]).double()
    once = pv.EM(start="random", accelerate="squarem", seed=2)
    found = pv.likelihood_ratio_test(normals(4), normals(5), x, engine=once, num_samples=3, progress=False)
    assert found.replicates.max() < 15


def test_what_cannot_be_compared_is_refused():
    x = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    with pytest.raises(pv.EngineError, match="cannot be compared on these data"):
        pv.likelihood_ratio_test(normals(1), normals(4), x, engine=QUICK, progress=False)
    with pytest.raises(pv.EngineError, match="at least 1, got 0"):
        pv.likelihood_ratio_test(normals(1), normals(2), x, num_samples=0)


def test_parameters_that_their_owner_froze_are_not_counted():
    class Shifted(pv.LatentVariableModel):
        def __init__(self, free):
            super().__init__()
            self.mixing = pv.families.Categorical(2)
            self.shift = torch.nn.Parameter(torch.tensor([-1.0, 1.0]), requires_grad=free)

        @pv.latent
        def z(self):
            return self.mixing()

        @pv.observed
        def x(self, z):
            return dist.Normal(self.shift[z], 1.0)

    torch.manual_seed(0)
    x = torch.cat([torch.randn(40) - 1, torch.randn(40) + 1]).double()
    found = pv.likelihood_ratio_test(Shifted(False), Shifted(True), x, num_samples=3, progress=False)
    assert found.statistic > 0
    with pytest.raises(pv.EngineError, match="are they exchanged"):
        pv.likelihood_ratio_test(Shifted(True), Shifted(False), x, num_samples=3, progress=False)
    with pytest.raises(pv.EngineError, match="fits by EM"):
        pv.likelihood_ratio_test(Shifted(False), Shifted(True), x, engine=pv.SVI(1), progress=False)
