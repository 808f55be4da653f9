"""What an E-step draws belongs to the rows: the same however the data are cut."""

from types import SimpleNamespace

import pytest
import scipy.stats
import torch

import ppl_vae as pv
from ppl_vae.infer.assignment import uniforms


def rows(start, n):
    return SimpleNamespace(start=start, obs=range(n))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_row_has_its_numbers_in_every_chunk(count):
    whole = uniforms(5, 2, rows(0, 1000), count)
    assert whole.shape == (count, 1000)
    pieces = [uniforms(5, 2, rows(low, min(7, 1000 - low)), count) for low in range(0, 1000, 7)]
    assert torch.equal(torch.cat(pieces, 1), whole)


def test_numbers_are_uniform_and_unlike_in_each_draw():
    draws = torch.stack([uniforms(seed, draw, rows(0, 4000), 1)[0] for seed in (0, 1) for draw in (0, 1)])
    assert scipy.stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3
    # No draw is another one, moved along the rows.
    spectrum = torch.fft.rfft(draws - 0.5)
    across = torch.stack([torch.fft.irfft(spectrum[i] * spectrum[j].conj()) for i in range(4) for j in range(i)])
    assert across.abs().max() < 6 * (4000**0.5) / 12


@pytest.mark.parametrize(
    "settings",
    [{"assignment": "stochastic"}, {"temperature": pv.linear(5.0, 1.0, 8)}],
    ids=["stochastic", "cooling"],
)
@pytest.mark.parametrize("size", [7, 50, 1000])
def test_a_stream_ends_where_the_data_in_memory_do(settings, size):
    locs, covariance = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.eye(2).expand(2, 2, 2)
    x = pv.data.gaussian_mixture(400, [0.4, 0.6], locs, covariance)[0]
    start = {"components.loc": locs, "components.covariance": covariance}
    engine = pv.EM(start=start, max_iter=10, tol=0, progress=False, **settings)
    model = pv.models.GaussianMixture(2, 2)
    held, streamed = engine.fit(model, x), engine.fit(model, pv.data.stream(x, rows=size))
    torch.testing.assert_close(streamed.trace["bound"], held.trace["bound"], rtol=1e-11, atol=0)
    for name, value in held.parameters.items():
        torch.testing.assert_close(streamed.parameters[name], value, rtol=1e-9, atol=1e-9)
