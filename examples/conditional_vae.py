"""A conditional VAE: the label is given, and digits of a class are drawn by asking for it."""

import pyro.distributions as dist
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import one_hot

import ppl_vae as pv
from ppl_vae import given, latent, observed


class ConditionalVAE(pv.LatentVariableModel):
    """p(z) = N(0, I), p(x | z, label) = Bernoulli(decoder(z, label)), q(z | x, label) = N(encoder(x, label))."""

    label = given()

    def __init__(self, pixels=64, classes=10, latent_dim=4, hidden=128):
        super().__init__()
        self.classes, self.latent_dim = classes, latent_dim
        self.encoder = pv.nets.mlp_encoder(pixels + classes, hidden, latent_dim)
        self.decoder = pv.nets.mlp_decoder(latent_dim + classes, hidden, pixels)

    def beside(self, value, label):
        return torch.cat([value, one_hot(label.long(), self.classes).to(value)], -1)

    @latent
    def z(self):
        return dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x, label):
        return dist.Normal(*self.encoder(self.beside(x, label))).to_event(1)

    @observed
    def x(self, z, label):
        return dist.Bernoulli(logits=self.decoder(self.beside(z, label))).to_event(1)


def main(epochs=80):
    torch.manual_seed(0)
    digits = pv.data.images("digits", binarize="threshold")
    train = {"x": digits.train, "label": digits.labels["train"]}
    test = {"x": digits.test, "label": digits.labels["test"]}
    engine = pv.SVI(epochs, batch_size=128, optimizer=pv.adam(3e-3), compile="trace", progress=False)
    conditional = engine.fit(ConditionalVAE(), train)
    plain = engine.fit(pv.models.VAE(pv.nets.mlp_encoder(64, 128, 4), pv.nets.mlp_decoder(4, 128, 64)), digits.train)
    gain = conditional.log_prob(test, 200).mean() - plain.log_prob(digits.test, 200).mean()
    print(f"what the label tells of a digit: {gain:.2f} nats")

    # Draws of a class, read by a classifier that has seen only true digits.
    reader = LogisticRegression(max_iter=2000).fit(digits.train.numpy(), digits.labels["train"].numpy())
    asked = torch.arange(10).repeat(50)
    drawn = conditional.sample(len(asked), label=asked)
    agreed = (torch.from_numpy(reader.predict(drawn.numpy())) == asked).double().mean().item()
    read = reader.score(digits.test.numpy(), digits.labels["test"].numpy())
    print(f"read as the class that was asked for: {agreed:.1%} of the draws; {read:.1%} of true digits are read right")
    assert gain > 0.5
    assert agreed > 0.7


if __name__ == "__main__":
    main()
