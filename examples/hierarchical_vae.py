"""A VAE with two layers of latents, its posterior built from the data upward or from the top down (a ladder)."""

import pyro.distributions as dist
import torch

import ppl_vae as pv
from ppl_vae import latent, observed


class TwoLayers(pv.LatentVariableModel):
    """p(z2) = N(0, I), p(z1 | z2) = N(m(z2), s(z2)^2), p(x | z1) = Bernoulli; q(z1 | x) q(z2 | z1)."""

    def __init__(self, pixels=64, sizes=(8, 3), hidden=64):
        super().__init__()
        self.sizes = sizes
        self.up1, self.up2 = pv.nets.mlp_encoder(pixels, hidden, sizes[0]), pv.nets.mlp_encoder(sizes[0], 32, sizes[1])
        self.down2, self.down1 = (
            pv.nets.mlp_encoder(sizes[1], 32, sizes[0]),
            pv.nets.mlp_decoder(sizes[0], hidden, pixels),
        )

    @latent
    def z2(self):
        return dist.Normal(torch.zeros(self.sizes[1]), 1.0).to_event(1)

    @latent
    def z1(self, z2):
        return dist.Normal(*self.down2(z2)).to_event(1)

    @observed
    def x(self, z1):
        return dist.Bernoulli(logits=self.down1(z1)).to_event(1)

    @z1.posterior
    def q_z1(self, x):
        return dist.Normal(*self.up1(x)).to_event(1)

    @z2.posterior
    def q_z2(self, z1):
        return dist.Normal(*self.up2(z1)).to_event(1)


class Ladder(TwoLayers):
    """The same model with q(z2 | x) q(z1 | x, z2): what x says of z1 times p(z1 | z2) (Sonderby et al. 2016)."""

    def q_z2(self, x):
        loc, _ = self.up1(x)
        return dist.Normal(*self.up2(loc)).to_event(1)

    def q_z1(self, x, z2):
        (m, s), (m2, s2) = self.up1(x), self.down2(z2)
        precision = s**-2 + s2**-2
        return dist.Normal((m / s**2 + m2 / s2**2) / precision, precision**-0.5).to_event(1)


def main(epochs=120):
    digits = pv.data.images("digits", binarize="threshold")
    # Without a long warm-up the ladder collapses, without free bits the upper layer does.
    engine = pv.SVI(
        epochs,
        batch_size=128,
        optimizer=pv.adam(3e-3),
        objective=pv.elbo(free_bits=0.1),
        beta=pv.linear(0, 1, epochs=epochs / 2),
        compile="trace",
        progress=False,
    )
    fits = {}
    for make in (TwoLayers, Ladder):
        torch.manual_seed(0)
        fits[make.__name__] = engine.fit(make(), digits.train)
    found = {name: fit.evaluate(digits.test, num_particles=200) for name, fit in fits.items()}
    for name, fit in fits.items():
        kl = fit.diagnose(digits.test, gap_data=0).collapse
        of = [unit.split("[")[0] for unit in kl.units]
        by_layer = {z: kl.kl_per_unit[torch.tensor([name == z for name in of])].sum().item() for z in ("z1", "z2")}
        layers = ", ".join(f"{z} {value:.2f}" for z, value in by_layer.items())
        print(f"{name}: ELBO {found[name].elbo:.2f}, log p(x) {found[name].log_prob:.2f}; KL by layer {layers} nats")
        assert by_layer["z1"] > 1
        assert by_layer["z2"] > 0.2

    p = digits.train.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = torch.distributions.Bernoulli(p).log_prob(digits.test).sum(1).mean().item()
    print(f"independent pixels: {independent:.3f} nats per datum")
    for fit, evaluation in zip(fits.values(), found.values(), strict=True):
        assert evaluation.log_prob > independent + 3
        assert evaluation.elbo < evaluation.log_prob + 3 * evaluation.elbo_se
        assert fit.sample(5).shape == (5, 64)


if __name__ == "__main__":
    main()
