"""Old Faithful by EM, SVI and NUTS: one declaration, one table, one report."""

import sys

import ppl_vae as pv


def main(draws=1000, epochs=500, report=None):
    x = pv.data.faithful()
    gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    fits = {
        "EM (ML)": pv.EM(n_init=10, estimate="ml").fit(gmm, x),
        "EM (MAP)": pv.EM(n_init=10).fit(gmm, x),
        "SVI": pv.SVI(epochs, optimizer=pv.adam(2e-2), guide="multivariate").fit(gmm, x),
        "NUTS": pv.NUTS(draws, warmup=draws // 2, num_chains=2).fit(gmm, x),
    }
    table = pv.compare(fits)
    print(table)
    print(table.parameters().round(3).to_string())
    if report:
        table.report(report)

    # The answer is known: the maximum-likelihood fit of 272 eruptions with two full covariances.
    frame = table.to_frame()
    assert abs(frame.loc["EM (ML)", "log_likelihood"] + 1130.2640) < 1e-3
    assert (frame["log_predictive"].max() - frame["log_predictive"].min()) < 0.01
    # Bayesian answers agree: posterior means within a posterior standard deviation of each other.
    numbers = table.parameters()
    assert ((numbers["SVI"] - numbers["NUTS"]).abs() < numbers["NUTS sd"]).all()


if __name__ == "__main__":
    main(report=sys.argv[1] if len(sys.argv) > 1 else None)
