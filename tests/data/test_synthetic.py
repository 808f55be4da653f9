import pytest
import torch

from ppl_vae.data import gaussian_mixture
from ppl_vae.errors import DataError

TRUTH = ([0.2, 0.8], [[0.0, 0.0], [5.0, -5.0]], [[[2.0, 0.5], [0.5, 1.0]], [[0.3, 0.0], [0.0, 0.3]]])


def test_moments_are_the_truth():
    x, labels = gaussian_mixture(20_000, *TRUTH)
    assert x.dtype == torch.float64
    assert labels.dtype == torch.int64
    for k in (0, 1):
        own = x[labels == k]
        assert len(own) / len(x) == pytest.approx(TRUTH[0][k], abs=0.012)
        assert (own.mean(0) - torch.tensor(TRUTH[1][k])).abs().max() < 0.1
        assert (own.T.cov() - torch.tensor(TRUTH[2][k])).abs().max() < 0.2


def test_the_seed_decides_and_torch_is_left_alone():
    before = torch.get_rng_state()
    one, other, third = (gaussian_mixture(50, *TRUTH, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], third[0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (([1.0], *TRUTH[1:]), r"weights \[1\], locs \[2, 2\]"),
        (([0.5, 0.5], [0.0, 1.0], [1.0, 1.0]), "d = 1"),
        (([0.5, 0.6], *TRUTH[1:]), "sum to 1"),
        (([-0.5, 1.5], *TRUTH[1:]), "sum to 1"),
        ((*TRUTH[:2], [TRUTH[2][0], [[1.0, 2.0], [2.0, 1.0]]]), r"covariances\[1\].*positive definite"),
        ((*TRUTH[:2], [[[1.0, 0.5], [0.0, 1.0]], TRUTH[2][1]]), r"covariances\[0\].*symmetric"),
    ],
)
def test_what_is_no_mixture_is_refused(truth, message):
    with pytest.raises(DataError, match=message):
        gaussian_mixture(10, *truth)
