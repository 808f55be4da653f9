"""EM on a table with holes and weights: nothing is made up, nothing is dropped, and the answer is checked.

python examples/missing_values.py
"""

import torch

import ppl_vae as pv


def main(n: int = 4000) -> None:
    locs = torch.tensor([[0.0, 0.0, 0.0, 0.0], [4.0, 0.0, 3.0, 0.0], [0.0, 4.0, 0.0, 3.0]])
    covariance = 0.6 * torch.ones(4, 4) + 0.4 * torch.eye(4)  # features that tell of one another
    truth = ([0.5, 0.3, 0.2], locs, covariance.repeat(3, 1, 1))
    table, _ = pv.data.gaussian_mixture(n, *truth, seed=1)
    fresh, _ = pv.data.gaussian_mixture(n, *truth, seed=2)
    holes = torch.rand(table.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    x = table.masked_fill(holes, torch.nan)
    print(f"{int(holes.sum())} of {holes.numel()} values are missing; {int((~holes.any(1)).sum())} rows are complete")

    gmm = pv.models.GaussianMixture(3, 4)
    em = pv.EM(n_init=5, progress=False)
    whole, partial = em.fit(gmm, table), em.fit(gmm, x)
    complete = em.fit(gmm, table[~holes.any(1)])
    print(partial.status)

    # Judged on fresh data: the rows with holes carry most of what the complete table does.
    scores = {
        "the whole table": whole.log_prob(fresh).mean().item(),
        "with holes": partial.log_prob(fresh).mean().item(),
        "complete rows only": complete.log_prob(fresh).mean().item(),
    }
    for name, score in scores.items():
        print(f"{name:20} {score:.4f} nats per datum")
    assert scores["the whole table"] - 0.02 < scores["with holes"] < scores["the whole table"] + 0.005
    assert scores["complete rows only"] < scores["with holes"]

    # A fit says what to expect in a hole, given the rest of its row; the means of the columns are what the simplest
    # imputation would say.
    expected, plain = partial.impute(x), torch.where(holes, x.nanmean(0), x)
    error, alone = ((guess - table)[holes].square().mean().sqrt().item() for guess in (expected, plain))
    print(f"error in the holes: {error:.2f}, by the means of the columns {alone:.2f}")
    assert error < 0.7 * alone

    # A weight of two is a row that stands twice.
    twice = em.fit(gmm, torch.cat([x, x[:500]]))
    weighted = em.fit(gmm, x, weights=1.0 + (torch.arange(n) < 500))
    difference = (twice.log_prob(fresh) - weighted.log_prob(fresh)).abs().max().item()
    print(f"rows repeated against weights: densities differ by at most {difference:.1e} nats")
    assert difference < 1e-3


if __name__ == "__main__":
    main()
