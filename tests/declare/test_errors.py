"""Every way to declare or to feed a model wrongly: the error's type, and the names and shapes in its message."""

import math

import pyro.distributions as dist
import pytest
import torch
from example_models import ConditionalVAE, PoissonLatent, SharedByHand, TwoFinite, make, mixture, numbers, vae
from torch.distributions.transforms import AffineTransform, SigmoidTransform

import ppl_vae as pv
from ppl_vae import given, latent, observed
from ppl_vae.errors import DataError, DeclarationError, EngineError

NORMAL = dist.Normal(torch.zeros(()), 1.0)


class Chain(pv.LatentVariableModel):
    """z -> x, with nodes given as functions."""

    def __init__(self, x=lambda z: dist.Normal(z, 1.0), z=lambda: NORMAL, q=lambda x: dist.Normal(x, 1.0)):
        super().__init__()
        self._nodes = (z, q, x)

    @latent
    def z(self):
        return self._nodes[0]()

    @z.posterior
    def q_z(self, x):
        return self._nodes[1](x)

    @observed
    def x(self, z):
        return self._nodes[2](z)


def declare(**members):
    """Make a class of its members, in order, as the class statement does."""
    return type("Wrong", (pv.LatentVariableModel,), members)


def node(name, *parents):
    """A function `name(self, *parents)` that returns a normal."""
    namespace = {"NORMAL": NORMAL}
    exec(f"def {name}(self, {', '.join(parents)}): return NORMAL", namespace)
    return namespace[name]


def observed_posterior():
    x = observed(node("x"))
    return declare(x=x, q_x=x.posterior(node("q_x")))


def shared_posterior():
    theta = latent(shared=True)(node("theta"))
    return declare(theta=theta, q=theta.posterior(node("q")), x=observed(node("x", "theta")))


def posterior_under_the_nodes_name():
    z = latent(node("z"))
    return declare(zz=z, z=z.posterior(node("z", "x")), x=observed(node("x", "z")))


DECLARATIONS = {
    "unknown parent": (
        lambda: declare(latent_code=latent(node("latent_code")), x=observed(node("x", "latent_cod"))),
        ["Wrong.x", "'latent_cod'", "did you mean 'latent_code'"],
    ),
    "unknown parent of a posterior": (
        lambda: declare(z=(z := latent(node("z"))), q_z=z.posterior(node("q_z", "y")), x=observed(node("x", "z"))),
        ["Wrong.q_z", "'y'", "x, z"],
    ),
    "cycle": (
        lambda: declare(a=latent(node("a", "c")), b=latent(node("b", "a")), c=latent(node("c", "b"))),
        ["Wrong", "cycle", "a -> c -> b -> a"],
    ),
    "cycle of posteriors": (
        lambda: declare(
            a=(a := latent(node("a"))),
            b=(b := latent(node("b"))),
            q_a=a.posterior(node("q_a", "b")),
            q_b=b.posterior(node("q_b", "a")),
        ),
        ["cycle", "a -> b -> a"],
    ),
    "posterior of an observed node": (observed_posterior, ["Wrong.q_x", "'x'", "observed"]),
    "posterior of a shared latent": (shared_posterior, ["Wrong.q", "'theta'", "SVI(guide=...)"]),
    "posterior under the node's name": (posterior_under_the_nodes_name, ["Wrong.z", "q_z"]),
    "reserved name": (lambda: declare(sample=latent(node("sample"))), ["Wrong.sample", "LatentVariableModel"]),
    "reserved name of torch": (lambda: declare(train=latent(node("train"))), ["Wrong.train", "'train'"]),
    "helper in the place of a method": (lambda: declare(law=lambda self, z: z), ["Wrong.law", "another name"]),
    "helper in the place of a private method": (lambda: declare(_call=lambda self: 0), ["Wrong._call", "another name"]),
    "static helper in the place of a method": (lambda: declare(sites=staticmethod(int)), ["Wrong.sites"]),
    "number in the place of a property": (lambda: declare(inputs=3), ["Wrong.inputs", "another name"]),
    "reserved name of an input": (lambda: declare(model=given()), ["Wrong.model"]),
    "shared depends on local": (
        lambda: declare(z=latent(node("z")), theta=latent(shared=True)(node("theta", "z"))),
        ["Wrong.theta", "'z'", "value per datum"],
    ),
    "shared depends on an input": (
        lambda: declare(c=given(), theta=latent(shared=True)(node("theta", "c"))),
        ["Wrong.theta", "'c'"],
    ),
    "argument with a default": (lambda: latent(lambda self, z=1: NORMAL), ["z=1", "plain name"]),
    "argument list": (lambda: observed(lambda self, *parents: NORMAL), ["*parents", "plain name"]),
}


@pytest.mark.parametrize("case", DECLARATIONS)
def test_wrong_declarations_are_refused_at_class_creation(case):
    make_class, fragments = DECLARATIONS[case]
    with pytest.raises(DeclarationError) as error:
        make_class()
    for fragment in fragments:
        assert fragment in str(error.value)


def test_the_helper_can_declare_a_right_class():
    model = declare(z=latent(node("z")), x=observed(node("x", "z")))
    assert list(model().graph()) == ["z", "x"]


def _wide(z):
    return dist.Normal(z[..., None].expand(*z.shape, 5), 1.0)


class OrphanPosterior(TwoFinite):
    @TwoFinite.a.posterior
    def q_a(self, x, b):
        return dist.Categorical(logits=torch.zeros(len(x), 2))


class BatchedShared(SharedByHand):
    def scale(self):
        return dist.LogNormal(torch.zeros(4), 1.0)


class PointMass(TwoFinite):
    @TwoFinite.a.posterior
    def q_a(self, x):
        return dist.Delta(torch.zeros(len(x)).long())


class NothingObserved(pv.LatentVariableModel):
    @latent
    def z(self):
        return NORMAL


def hide():
    Chain().x = 3


FIRST_USE = {
    "forgotten to_event, observed": (
        lambda: Chain(_wide).elbo(torch.zeros(9, 5)),
        ["Chain.x", "(7, 5)", ".to_event(1)"],
    ),
    "forgotten to_event, latent": (
        lambda: Chain(z=lambda: dist.Normal(torch.zeros(3), 1.0)).elbo(torch.zeros(7)),
        ["Chain.z", "(3,)", "event shape ()", ".to_event(1)"],
    ),
    "forgotten to_event, latent as wide as the rows looked at": (
        lambda: Chain(z=lambda: dist.Normal(torch.zeros(4), 1.0)).elbo(torch.zeros(4)),
        ["Chain.z", "(4,)", ".to_event(1)"],
    ),
    "a tensor": (lambda: Chain(lambda z: z).elbo(torch.zeros(3)), ["'x'", "Tensor", "pyro.distributions"]),
    "a torch distribution": (
        lambda: Chain(lambda z: torch.distributions.Normal(z, 1.0)).elbo(torch.zeros(3)),
        ["'x'", "torch distribution", "pyro.distributions.Normal"],
    ),
    "a finite latent with a batch of its own": (
        lambda: Chain(z=lambda: dist.Categorical(torch.ones(4, 3)), q=None).log_prob(torch.zeros(6)),
        ["Chain.z", "(4,)", ".to_event(1)"],
    ),
    "posterior on a latent that has none": (
        lambda: OrphanPosterior().elbo(torch.zeros(3)),
        ["OrphanPosterior.q_a", "'b'", "@b.posterior"],
    ),
    "finite latent, posterior that is not": (
        lambda: PointMass().evidence(torch.zeros(3)),
        ["PointMass", "'a'", "Categorical", "Delta"],
    ),
    "batched shared latent": (lambda: BatchedShared().model(torch.zeros(3)), ["'scale'", "(4,)", ".to_event(1)"]),
    "nothing observed": (lambda: NothingObserved().elbo(torch.zeros(3)), ["NothingObserved", "@observed"]),
    "attribute hides a node": (hide, ["Chain", "'x'", "hide"]),
    "attribute hides an input": (lambda: setattr(ConditionalVAE(), "label", 1), ["ConditionalVAE", "'label'"]),
}


@pytest.mark.parametrize("case", FIRST_USE)
def test_wrong_nodes_are_refused_at_first_use(case):
    use, fragments = FIRST_USE[case]
    with pytest.raises(DeclarationError) as error:
        use()
    for fragment in fragments:
        assert fragment in str(error.value)


R2, CLASSES = dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Categorical(torch.ones(3))
POSTERIORS = {
    "narrow": (R2, lambda x: dist.Normal(x[:, None], 1.0).to_event(1), "event shape (1,), and its latent 'z' has (2,)"),
    "wide": (NORMAL, lambda x: dist.Normal(x[:, None], 1.0).to_event(1), "event shape (1,), and its latent 'z' has ()"),
    "forgotten to_event": (R2, lambda x: dist.Normal(x[:, None].expand(-1, 2), 1.0), "(7, 2) and event shape ()"),
    "a class too few": (CLASSES, lambda x: dist.Categorical(logits=x[:, None].expand(-1, 2)), "2 values, and its"),
    "a class too many": (CLASSES, lambda x: dist.Categorical(logits=x[:, None].expand(-1, 4)), "4 values, and its"),
    "two classes of three": (CLASSES, lambda x: dist.Bernoulli(logits=x), "a law of 3 values"),
    "counts for numbers": (NORMAL, lambda x: dist.Poisson(x.exp()), "whose draws are not all values of its latent 'z'"),
    "classes for numbers": (NORMAL, lambda x: dist.Bernoulli(logits=x), "is a Bernoulli, whose draws are not all"),
    "the line for a part of it": (dist.Gamma(2.0, 1.0), lambda x: dist.Normal(x, 1.0), "its latent 'z', a Gamma"),
    "the line for an interval": (dist.Beta(2.0, 1.0), lambda x: dist.Normal(x, 1.0), "on the latent's own support"),
}


@pytest.mark.parametrize("ask", [lambda model, x: model.log_prob(x), pv.SVI(1, progress=False).fit], ids=["ask", "fit"])
@pytest.mark.parametrize("case", POSTERIORS)
def test_a_posterior_of_other_values_than_its_latents_is_refused(case, ask):
    """Broadcast against the prior it would give numbers, above log p(x) even."""
    law, q, said = POSTERIORS[case]
    model = Chain(lambda z: dist.Normal(1.0 * (z[..., 0] if law.event_shape else z), 1.0), lambda: law, q)
    with pytest.raises(DeclarationError) as error:
        ask(model, torch.randn(9))
    assert "Chain.q_z" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("ask", [lambda step, x: step(x), lambda step, x: step({"x": x.int()})], ids=["float", "int"])
def test_so_is_it_in_a_loop_of_ones_own(ask):
    model = Chain(q=lambda x: dist.Normal(x[:, None], 1.0).to_event(1))
    model.loc = torch.nn.Parameter(torch.zeros(()))
    with pytest.raises(DeclarationError, match=r"Chain.q_z has event shape \(1,\)"):
        ask(pv.svi_step(model, pv.adam(1e-3)), torch.zeros(9))


SHIFTED = [SigmoidTransform(), AffineTransform(0.0, 5.0)]
REACHING = {
    "an interval": (dist.Uniform(0.0, 5.0), lambda x: dist.TransformedDistribution(dist.Normal(x, 1.0), SHIFTED)),
    "angles": (dist.Uniform(-math.pi, math.pi), lambda x: dist.VonMises(x, 2.0)),
    "a point": (dist.Gamma(2.0, 2.0), lambda x: dist.Delta(x.exp())),
    "beyond one": (
        dist.Pareto(1.0, 3.0),
        lambda x: dist.TransformedDistribution(dist.LogNormal(x, 1.0), [AffineTransform(1.0, 1.0)]),
    ),
    "numbers of another law": (dist.Gamma(2.0, 2.0), lambda x: dist.LogNormal(x, 1.0)),
    "fewer counts": (dist.Poisson(3.0), lambda x: dist.Binomial(5, torch.sigmoid(x))),
}


@pytest.mark.parametrize("case", REACHING)
def test_a_posterior_whose_law_does_not_tell_its_support_is_tried(case):
    law, q = REACHING[case]
    assert Chain(z=lambda: law, q=q).elbo(torch.linspace(-1, 1, 9)).isfinite().all()


IMPOSSIBLE = {
    "improper": (dist.ImproperUniform(torch.distributions.constraints.real, (), ()), "take a proper law that is wide"),
    "no coordinates": (dist.Wishart(torch.tensor(4.0), torch.eye(2)), "LKJCholesky and scales for a covariance"),
}


@pytest.mark.parametrize("engine", [pv.EM(progress=False), pv.SVI(1, progress=False), pv.NUTS(progress=False)])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_shared_law_that_no_engine_can_move_in_is_named(case, engine):
    law, said = IMPOSSIBLE[case]

    class Impossible(pv.LatentVariableModel):
        @latent(shared=True)
        def theta(self):
            return law

        @observed
        def x(self, theta):
            return dist.Normal(theta.sum(), 1.0)

    with pytest.raises(DeclarationError, match=said) as error:
        engine.fit(Impossible(), torch.zeros(9))
    assert "'theta'" in str(error.value)


def test_a_posterior_may_hold_parameters_of_every_datum():
    x = numbers(5, seed=0)
    own = Chain(q=lambda x: dist.Normal(x / 2, 0.5**0.5)).double()

    class Held(Chain):
        @Chain.z.posterior
        def q_z(self):
            return dist.Normal(x / 2, 0.5**0.5)

    torch.testing.assert_close(Held().double().log_prob(x), own.log_prob(x))


def _one_hot(z):
    return dist.OneHotCategorical(logits=z[..., None].expand(*z.shape, 3))


def nan(*shape):
    x = torch.zeros(shape)
    x.view(-1)[1] = math.nan
    return x


def conditional(**data):
    return lambda: ConditionalVAE().elbo(data)


DATA = {
    "nobody passed the input": (conditional(x=torch.zeros(3, 4)), ["'label'", "x, label"]),
    "nobody passed the observed node": (conditional(label=torch.zeros(3)), ["'x'", "x, label", "got label"]),
    "not a mapping": (lambda: ConditionalVAE().elbo(torch.zeros(3, 4)), ["mapping", "x, label", "Tensor"]),
    "unknown name": (lambda: Chain().elbo({"x": torch.zeros(3), "y": torch.zeros(3)}), ["'y'", "x"]),
    "rows disagree": (conditional(x=torch.zeros(3, 4), label=torch.zeros(2)), ["'x': 3", "'label': 2"]),
    "empty": (lambda: Chain().elbo(torch.zeros(0)), ["x", "0 rows"]),
    "a single number": (lambda: Chain().elbo(torch.tensor(1.0)), ["'x'", "single number"]),
    "text": (lambda: Chain().elbo(["one", "two"]), ["'x'", "numbers are expected"]),
    "event shape": (lambda: mixture().log_prob(torch.zeros(5, 3)), ["GaussianMixture.x", "(5, 3)", "(2,)"]),
    "event shape, transposed image": (
        lambda: vae().elbo(torch.zeros(5, 2, 3)),
        ["VAE.x", "(5, 2, 3)", "reshape", "[n, 6]"],
    ),
    "flat data of one feature": (
        lambda: Chain(lambda z: dist.Normal(z[..., None], 1.0).to_event(1)).elbo(torch.zeros(5)),
        ["Chain.x", "(5,)", "(1,)", "[n, 1]"],
    ),
    "events beyond the node's": (lambda: Chain().elbo(torch.zeros(5, 2)), ["Chain.x", "(5, 2)", "to_event"]),
    "numbers as a column": (lambda: Chain().elbo(torch.zeros(5, 1)), ["(5, 1)", "drop the last", "y[:, 0]"]),
    "grey pixels": (
        lambda: vae().elbo(torch.full((5, 6), 0.5)),
        [
            "VAE.x",
            "30 values",
            "Bernoulli",
            "0.5 in row 0",
            "entry [0]",
            "grey",
            "binarize",
            "gaussian-learned",
        ],
    ),
    "not pixels at all": (lambda: vae().elbo(torch.full((5, 6), 7.0)), ["VAE.x", "Bernoulli", "7 in row 0"]),
    "negative counts": (
        lambda: Chain(lambda z: dist.Poisson(z.exp())).elbo(torch.tensor([0.0, 2.0, -1.0])),
        ["Chain.x", "1 values", "Poisson", "-1 in row 2 (counted from 0)"],
    ),
    "infinite": (lambda: Chain().elbo(torch.tensor([0.0, math.inf])), ["Chain.x", "row 1", "infinite"]),
    "a label too large": (
        lambda: mixture().log_prob({"x": torch.zeros(3, 2), "z": torch.tensor([0.0, 2.0, 1.0])}),
        ["GaussianMixture.z", "Categorical", "(0 to 1)", "2 in row 1"],
    ),
    "bytes": (lambda: Chain().elbo(torch.arange(3, dtype=torch.uint8)), ["Chain.x", "torch.uint8", ".float()"]),
    "NaN in an input": (conditional(x=torch.zeros(3, 4), label=nan(3)), ["'label'", "1 NaN"]),
    "NaN in part of a joint law": (
        lambda: Chain(_one_hot, q=lambda x: dist.Normal(x[:, 0], 1.0)).elbo(nan(2, 3)),
        ["Chain.x", "1 rows are partly NaN", "OneHotCategorical"],
    ),
    "NaN in a continuous latent": (
        lambda: Chain().elbo({"x": torch.zeros(3), "z": nan(3)}),
        ["Chain.z", "1 values", "Normal"],
    ),
    "a latent's value missing from log_joint": (lambda: Chain().log_joint(torch.zeros(3)), ["['z']", "got []"]),
    "sample without its input": (lambda: ConditionalVAE().sample(3), ["'label'"]),
}


@pytest.mark.parametrize("case", DATA)
def test_wrong_data_are_refused(case):
    use, fragments = DATA[case]
    with pytest.raises(DataError) as error:
        use()
    for fragment in fragments:
        assert fragment in str(error.value)


def test_integers_are_counts_where_the_law_is_discrete():
    model = Chain(
        lambda z: dist.Poisson(z.exp()), z=lambda: dist.Delta(torch.tensor(0.3)), q=lambda x: dist.Delta(0.3 + 0 * x)
    )
    torch.testing.assert_close(model.elbo(torch.tensor([0, 2])), model.elbo(torch.tensor([0.0, 2.0])))


BARE = {
    "log_prob": lambda model, x: model.log_prob(x),
    "elbo": lambda model, x: model.elbo(x),
    "evidence": lambda model, x: model.evidence(x),
    "responsibilities": lambda model, x: model.responsibilities(x),
    "posterior": lambda model, x: model.posterior(x),
    "reconstruct": lambda model, x: model.reconstruct(x),
    "sample": lambda model, x: model.sample(3),
    "log_joint": lambda model, x: model.log_joint(x, z=torch.zeros(len(x), dtype=torch.long)),
}


@pytest.mark.parametrize("name", ["shared by hand", "mixture, full, prior"])
@pytest.mark.parametrize("question", BARE)
def test_a_bare_model_with_undrawn_shared_latents_says_that_a_fit_has_them(name, question):
    model, x = make(name)
    with pytest.raises(EngineError, match="fit the model") as error:
        BARE[question](model, x)
    assert "scale" in str(error.value) or "Normal.loc" in str(error.value) or "Categorical.probs" in str(error.value)


class NoPosterior(pv.LatentVariableModel):
    @latent
    def z(self):
        return dist.Poisson(torch.tensor(2.0))

    @observed
    def x(self, z):
        return dist.Normal(z, 1.0)


@pytest.mark.parametrize(
    ("use", "fragments"),
    [
        (lambda: NoPosterior().elbo(torch.zeros(3)), ["'z'", "Poisson", "@z.posterior"]),
        (lambda: PoissonLatent().responsibilities(torch.zeros(3)), ["PoissonLatent", "no finite latent"]),
        (lambda: Chain()(torch.zeros(3)), ["Chain", "engine.fit"]),
        (lambda: Chain().model(), ["size=n"]),
        (lambda: mixture(prior="weak").components.loc, ["Normal.loc", "fit the model"]),
        (
            lambda: pv.models.GaussianMixture(2, 2, prior="weak").model(torch.zeros(3, 2)),
            ["weak prior", "model.adapt(x)"],
        ),
    ],
)
def test_what_a_model_cannot_answer(use, fragments):
    with pytest.raises(EngineError) as error:
        use()
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize("law", [lambda table, z: table[z][..., 0], lambda table, z: table], ids=["cut", "whole"])
def test_a_law_whose_rows_are_the_values_of_a_finite_latent_is_refused(law, n):
    """With as many data as values it would fit, class k matched with datum k."""

    class Wrong(pv.LatentVariableModel):
        @latent
        def z(self):
            return dist.Categorical(probs=torch.tensor([0.5, 0.5]))

        @observed
        def x(self, z):
            return dist.Bernoulli(law(torch.tensor([0.1, 0.8]), z))

    with pytest.raises(DeclarationError, match=r"Wrong.x was called with z \[8, 7\], .* batch shape \[\d\]"):
        pv.EM(progress=False).fit(Wrong(), torch.ones(n))
