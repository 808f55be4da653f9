"""Variance explosion made to happen, both ways: a decoder's scale runs to zero, and codes run away from the prior."""

import torch
from torch import nn

import ppl_vae as pv


def train(likelihood, digits, epochs, latent_dim=4):
    torch.manual_seed(0)
    # With a sigmoid behind it the decoder reproduces a pixel that is always 0 as exactly as it likes.
    decoder = nn.Sequential(pv.nets.mlp_decoder(latent_dim, 64, 64), nn.Sigmoid())
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 64, latent_dim), decoder, likelihood)
    return pv.SVI(epochs, 128, pv.adam(2e-2), compile="trace", progress=False).fit(vae, digits.train)


def main(epochs=120):
    digits = pv.data.images("digits")
    never = (digits.train.std(0) == 0).nonzero()[0, 0]
    touched = digits.test[:1].clone()
    touched[0, never] = 1 / 16  # one grey level, at a pixel that is 0 in all training data

    scales = {
        "no floor": pv.likelihoods.GaussianLearned(0.5, floor=1e-12, pixels=64),
        "floor 0.001": pv.likelihoods.GaussianLearned(0.5, pixels=64),
        "floor 0.03": pv.likelihoods.GaussianLearned(0.5, floor=0.03, pixels=64),
        "one optimal scale": pv.likelihoods.GaussianOptimal(),
    }
    fits = {name: train(likelihood, digits, epochs) for name, likelihood in scales.items()}
    cost, smallest = {}, {}
    for name, fit in fits.items():
        torch.manual_seed(0)
        cost[name] = (fit.elbo(touched, 50) - fit.elbo(digits.test[:1], 50)).item()
        smallest[name] = fit.diagnose(digits.test, gap_data=0)["smallest decoder scale"]
        bound = fit.trace["bound"][-1].item()
        print(f"{name:<18}smallest scale {smallest[name].text:<28}bound in training {bound:<8.1f}", end="")
        print(f"one grey level more costs {-cost[name]:.2g} nats")

    spread = {}
    for name, likelihood in {"s = 0.005": pv.likelihoods.Gaussian(0.005), "optimal s": "gaussian-optimal"}.items():
        found = train(likelihood, digits, epochs, latent_dim=2).diagnose(digits.test, gap_data=0)
        spread[name] = found["variance over the prior's"]
        print(f"{name:<18}variance of the codes {spread[name].text} the prior's; KL {found['KL'].text}")

    assert not smallest["no floor"].ok
    assert smallest["no floor"].value < 1e-5
    assert cost["no floor"] < 1e4 * cost["floor 0.001"]
    assert cost["floor 0.03"] > -1000
    for name in ("floor 0.001", "floor 0.03", "one optimal scale"):
        assert smallest[name].ok
    assert not spread["s = 0.005"].ok
    assert spread["optimal s"].ok


if __name__ == "__main__":
    main()
