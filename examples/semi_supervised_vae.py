"""A VAE that learns from a few labelled digits and many without a label (M2 of Kingma et al. 2014)."""

import pyro.distributions as dist
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import one_hot

import ppl_vae as pv
from ppl_vae import given, latent, observed


class SemiSupervisedVAE(pv.LatentVariableModel):
    """p(y) = 1/K, p(z) = N(0, I), p(x | y, z) = Bernoulli; q(y | x) q(z | x, y), y NaN where nobody labelled it.

    An unknown y is enumerated; a known one rules its other values out. Where y is known the bound does not train
    q(y | x), so a term of the objective does: alpha log q(y | x), eq. 9 of the paper.
    """

    labelled = given()

    def __init__(self, pixels=64, classes=10, latent_dim=4, hidden=128, alpha=20.0):
        super().__init__()
        self.classes, self.latent_dim, self.alpha = classes, latent_dim, alpha
        self.classifier = pv.nets.mlp_decoder(pixels, hidden, classes)
        self.encoder = pv.nets.mlp_encoder(pixels + classes, hidden, latent_dim)
        self.decoder = pv.nets.mlp_decoder(latent_dim + classes, hidden, pixels)

    def beside(self, value, y):
        return torch.cat([value, one_hot(y.long(), self.classes).to(value)], -1)

    @latent
    def y(self):
        return dist.Categorical(torch.ones(self.classes))

    @latent
    def z(self):
        return dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1)

    @y.posterior
    def q_y(self, x):
        return dist.Categorical(logits=self.classifier(x))

    @z.posterior
    def q_z(self, x, y):
        return dist.Normal(*self.encoder(self.beside(x, y))).to_event(1)

    @observed
    def x(self, y, z):
        return dist.Bernoulli(logits=self.decoder(self.beside(z, y))).to_event(1)

    @pv.penalty
    def mistaken(self, x, y, labelled):
        return -self.alpha * labelled * self.q_y(x).log_prob(y)


def main(epochs=60, per_class=5):
    torch.manual_seed(0)
    digits = pv.data.images("digits", binarize="threshold")
    x, y = digits.train, digits.labels["train"]
    known = torch.cat([(y == k).nonzero()[:per_class, 0] for k in range(10)])
    labelled = torch.zeros(len(x)).index_fill(0, known, 1.0)
    partly = torch.where(labelled.bool(), y.float(), torch.nan)

    engine = pv.SVI(epochs, batch_size=128, optimizer=pv.adam(3e-3), compile="trace", progress=False)
    fit = engine.fit(SemiSupervisedVAE(), {"x": x, "y": partly, "labelled": labelled})
    guessed = fit.labels({"x": digits.test, "labelled": torch.zeros(len(digits.test))})
    accuracy = (guessed == digits.labels["test"]).double().mean().item()
    few = LogisticRegression(max_iter=2000).fit(x[known].numpy(), y[known].numpy())
    baseline = few.score(digits.test.numpy(), digits.labels["test"].numpy())
    print(f"{len(known)} of {len(x)} digits have a label")
    print(f"accuracy on test digits: {accuracy:.1%}; of a classifier of the labelled ones alone: {baseline:.1%}")
    assert accuracy > baseline + 0.02

    whole = LogisticRegression(max_iter=2000).fit(x.numpy(), y.numpy())
    asked = torch.arange(10).repeat(50)
    with torch.no_grad():
        z = torch.randn(len(asked), fit.model.latent_dim)
        drawn = fit.model.x(asked, z).sample()
    agreed = (torch.from_numpy(whole.predict(drawn.numpy())) == asked).double().mean().item()
    print(f"draws of a class that are read as that class: {agreed:.1%}")
    assert agreed > 0.5


if __name__ == "__main__":
    main()
