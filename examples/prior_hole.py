"""A prior hole made to happen, seen by the diagnostic, and mended by priors that know where the codes are."""

import torch

import ppl_vae as pv


def four_kinds(n, seed):
    """Images of 4 x 4 binary pixels with one bright row and a fiftieth of the pixels flipped."""
    generator = torch.Generator().manual_seed(seed)
    p = 0.96 * torch.eye(4).repeat_interleave(4, 1) + 0.02
    return torch.bernoulli(p[torch.randint(4, (n,), generator=generator)], generator=generator)


def one_bright_row(x):
    """Share of the images that look like the data: one row with 3 pixels on at least, the others with fewer."""
    return ((x.view(-1, 4, 4).mean(2) > 0.6).sum(1) == 1).double().mean().item()


def main(epochs=100, seed=0):
    x, new = four_kinds(400, 1), four_kinds(400, 2)

    def train(make_prior):
        torch.manual_seed(seed)
        vae = pv.models.VAE(pv.nets.mlp_encoder(16, 32, 2), pv.nets.mlp_decoder(2, 32, 16), prior=make_prior())
        # With less of the KL term the codes of the kinds move apart and leave the middle of N(0, I) empty. A step moves
        # a component of a learned prior by a hundredth at most, so that it takes hundreds of them to reach the codes.
        engine = pv.SVI(epochs, 50, pv.adam(1e-2), beta=0.3, compile="trace", seed=seed, progress=False)
        return engine.fit(vae, x)

    fits = {
        "N(0, I)": train(lambda: None),
        "mixture": train(lambda: pv.priors.Mixture(8, 2)),
        "VampPrior": train(lambda: pv.priors.Vamp(20, 16, loc=0.0, scale=1.0)),
    }
    fits["refitted"] = pv.refit_prior(fits["N(0, I)"], x, n_components=6)
    found = {name: fit.diagnose(new, gap_data=0) for name, fit in fits.items()}
    shares = {name: one_bright_row(fit.sample(4000)) for name, fit in fits.items()}
    log_prob = {name: fit.log_prob(new, 200).mean().item() for name, fit in fits.items()}
    for name, d in found.items():
        hole, kl = d["prior in holes"].value, d["KL(q(z) || p)"].value
        print(
            f"{name:<12}prior in holes {hole:.2f}   KL(q(z) || p) {kl:.2f}   held-out log p(x) {log_prob[name]:.2f}",
            end="",
        )
        print(f"   draws like the data {shares[name]:.2f}")
    print(f"data like the data {one_bright_row(four_kinds(4000, 3)):.2f}")
    print(*found["N(0, I)"].advice, sep="\n")

    assert not found["N(0, I)"].ok
    for name in ("mixture", "VampPrior", "refitted"):
        assert found[name]["prior in holes"].value < 0.6 * found["N(0, I)"]["prior in holes"].value
        assert found[name]["KL(q(z) || p)"].value < 0.8 * found["N(0, I)"]["KL(q(z) || p)"].value
        assert log_prob[name] > log_prob["N(0, I)"] + 0.05
        assert shares[name] > shares["N(0, I)"] + 0.05


if __name__ == "__main__":
    main()
