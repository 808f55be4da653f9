"""Columns in another order, or of another name, are refused wherever data come in: in memory, as streams, as starts."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from sklearn.mixture import GaussianMixture as Theirs

import ppl_vae as pv

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.2])
FRAME = pd.DataFrame(X.double().numpy(), columns=list("abc"))
SWAPPED, RENAMED = FRAME[["c", "a", "b"]], FRAME.rename(columns={"c": "z"})
GMM = pv.models.GaussianMixture(1, 3)
EM = pv.EM(progress=False)
VAE = pv.models.VAE(pv.nets.mlp_encoder(3, 4, 1), pv.nets.mlp_decoder(1, 4, 3), likelihood="gaussian-learned")


def svi(**settings):
    return pv.SVI(1, batch_size=20, compile="off", progress=False, **settings)


def in_memory():
    return EM.fit(GMM, FRAME)


def streamed():
    return EM.fit(GMM, pv.data.stream(FRAME, rows=20))


def svi_streamed():
    return svi().fit(VAE, pv.data.stream(FRAME, rows=20))


def of_sklearn():
    return pv.sklearn.from_sklearn(Theirs(1).fit(FRAME))


ASKED = {
    "log_prob": (in_memory, lambda fit, x: fit.log_prob(x)),
    "evaluate on a stream": (in_memory, lambda fit, x: fit.evaluate(pv.data.stream(x))),
    "standard errors on a stream": (in_memory, lambda fit, x: pv.standard_errors(fit, pv.data.stream(x))),
    "a fit of a stream": (streamed, lambda fit, x: fit.log_prob(x)),
    "a fit of a stream on a stream": (streamed, lambda fit, x: fit.evaluate(pv.data.stream(x, rows=20))),
    "EM from a fit": (in_memory, lambda fit, x: pv.EM(start=fit, progress=False).fit(GMM, x)),
    "SVI from a fit": (in_memory, lambda fit, x: svi(start=fit).fit(GMM, x)),
    "validation": (in_memory, lambda fit, x: svi(validation=x).fit(VAE, FRAME)),
    "a VAE of a stream": (svi_streamed, lambda fit, x: fit.evaluate(x, num_particles=2)),
    "from scikit-learn": (of_sklearn, lambda fit, x: fit.log_prob(x)),
}


@pytest.mark.parametrize("case", ASKED)
def test_other_columns_are_refused_in_words(case):
    make, ask = ASKED[case]
    fit = make()
    ask(fit, FRAME)
    ask(fit, pd.DataFrame(FRAME.to_numpy()))  # columns that are only counted have no names to go by
    with pytest.raises(pv.DataError, match=r"columns c, a, b, .* a, b, c in this order: pass x\[\['a', 'b', 'c'\]\]"):
        ask(fit, SWAPPED)
    with pytest.raises(pv.DataError, match=r"'c' is missing; rename the columns, or pass x.to_numpy\(\)"):
        ask(fit, RENAMED)


def test_columns_that_are_called_by_their_places_may_not_change_them():
    frame = FRAME.set_axis(["x1", "x2", "x3"], axis=1)
    fit = EM.fit(GMM, frame)
    with pytest.raises(pv.DataError, match=r"pass x\[\['x1', 'x2', 'x3'\]\]"):
        fit.log_prob(frame[["x3", "x1", "x2"]])


def test_a_fitted_model_is_a_declaration_for_other_data():
    other = RENAMED[["z", "a", "b"]]
    for engine in (EM, svi()):
        again = engine.fit(in_memory().model, other)
        assert bool(again.log_prob(other).isfinite().all())


def test_a_column_too_many_or_too_few():
    fit = in_memory()
    with pytest.raises(pv.DataError, match=r"pass x\[\['a', 'b', 'c'\]\]"):
        fit.log_prob(FRAME.assign(d=1.0))
    with pytest.raises(pv.DataError, match="'c' is missing"):
        fit.log_prob(FRAME[["a", "b"]])


def test_a_single_column_may_have_any_name():
    one = pv.models.GaussianMixture(1, 1)
    fit = EM.fit(one, FRAME["a"])
    assert fit.log_prob(FRAME["a"].rename("z")).equal(fit.log_prob(FRAME[["a"]]))


def test_streams_of_arrays_have_no_names():
    array = FRAME.to_numpy()
    fit = EM.fit(GMM, pv.data.stream(array, rows=20))
    torch.testing.assert_close(
        fit.log_prob(SWAPPED.rename(columns=dict(zip("cab", "abc", strict=True)))), fit.log_prob(array[:, [2, 0, 1]])
    )


def test_columns_without_names_are_none_to_scikit_learn():
    theirs = pv.sklearn.to_sklearn(EM.fit(GMM, pv.data.stream(FRAME.to_numpy())))
    assert not hasattr(theirs, "feature_names_in_")


def test_names_go_to_scikit_learn_and_back():
    theirs = pv.sklearn.to_sklearn(in_memory())
    assert theirs.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        theirs.predict(SWAPPED)
    np.testing.assert_allclose(theirs.score_samples(FRAME), in_memory().log_prob(FRAME).numpy(), rtol=1e-10)


def test_a_saved_fit_of_a_stream_knows_its_columns(tmp_path):
    streamed().save(tmp_path / "fit.safetensors")
    with pytest.raises(pv.DataError, match="in this order"):
        pv.Fit.load(tmp_path / "fit.safetensors", GMM).log_prob(SWAPPED)


def test_a_stream_of_a_frame_feeds_a_model_of_several_nodes():
    class Line(pv.LatentVariableModel):
        t = pv.given()

        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.zeros(()))

        @pv.observed
        def y(self, t):
            return dist.Normal(self.slope * t, 1.0)

    t = np.linspace(-1, 1, 40)
    frame = pd.DataFrame({"y": 2 * t, "unused": 0.0, "t": t})
    stream = pv.data.stream(frame, columns=["t", "y"], rows=10)
    fit = pv.SVI(30, batch_size=10, optimizer=pv.adam(0.1), compile="off", progress=False).fit(Line(), stream)
    assert fit.model.slope.item() == pytest.approx(2.0, abs=0.05)
