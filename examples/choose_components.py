"""Old Faithful: how many components, which covariance, and how well is each parameter known?"""

import sys

import ppl_vae as pv


def main(sizes=range(1, 7), n_init=5, refits=200, figure=None):
    x = pv.data.faithful()
    selection = pv.select(
        pv.models.GaussianMixture,
        x,
        n_components=sizes,
        covariance=("full", "tied", "diagonal", "spherical"),
        engine=pv.EM(n_init=n_init, accelerate="squarem"),
    )
    print(selection)
    if figure:
        selection.plot().figure.savefig(figure)

    # The answer is known: mclust's EEE, here "tied", with three components has the best BIC of these forms, 2314.
    cell = selection.best_cell
    assert cell.settings == {"n_components": 3, "covariance": "tied"}
    assert abs(selection.to_frame().query("best")["bic"].item() - 2314) < 0.5

    # Two of the three overlap. ICL charges for overlap and takes two groups, as the eye does.
    assert selection.best_by("icl").settings["n_components"] == 2
    two = selection.best_by("icl").fit
    errors = pv.standard_errors(two)
    print(errors)
    again = pv.bootstrap(two, num_samples=refits)
    print(again.status)
    # Far from each other, as these are, the groups have estimates that are nearly normal: the two spreads agree.
    spread = again.draws["components.loc"][0].std(0)
    ratio = spread / errors.standard_error["components.loc"]
    assert 0.7 < ratio.min() <= ratio.max() < 1.4


if __name__ == "__main__":
    main(figure=sys.argv[1] if len(sys.argv) > 1 else None)
