"""A prior hole made to happen, seen by the diagnostic, and mended by priors that know where the codes are."""

import torch

import ppl_vae as pv


def four_kinds(n, seed):
    """Images of 4 x 4 binary pixels with one bright row and a twentieth of the pixels flipped."""
    generator = torch.Generator().manual_seed(seed)
    p = 0.9 * torch.eye(4).repeat_interleave(4, 1) + 0.05
    return torch.bernoulli(p[torch.randint(4, (n,), generator=generator)], generator=generator)


def one_bright_row(x):
    """Share of the images that look like the data: one row with 3 pixels on at least, the others with fewer."""
    return ((x.view(-1, 4, 4).mean(2) > 0.6).sum(1) == 1).double().mean().item()


def main(epochs=60):
    x, new = four_kinds(400, 1), four_kinds(400, 2)

    def train(make_prior):
        torch.manual_seed(0)
        vae = pv.models.VAE(pv.nets.mlp_encoder(16, 32, 2), pv.nets.mlp_decoder(2, 32, 16), prior=make_prior())
        # With a KL term of a tenth the codes of the kinds move apart, further than N(0, I) reaches.
        return pv.SVI(epochs, 100, pv.adam(1e-2), beta=0.1, compile="trace", progress=False).fit(vae, x)

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
        assert found[name]["KL(q(z) || p)"].value < 0.8 * found["N(0, I)"]["KL(q(z) || p)"].value
        assert log_prob[name] > log_prob["N(0, I)"] + 0.2
        assert shares[name] > shares["N(0, I)"] + 0.05


if __name__ == "__main__":
    main()
