"""A VQ-VAE on handwritten digits: four codes of 32 for an image, a law of the codes, and images drawn from it."""

import torch

import ppl_vae as pv


def main(epochs=60):
    torch.manual_seed(0)
    digits = pv.data.images("digits")
    positions, n_codes, size = 4, 32, 4
    vq = pv.models.VQVAE(
        pv.nets.mlp_decoder(64, 128, positions * size),
        pv.nets.mlp_decoder(positions * size, 128, 64),
        pv.codebooks.Averaged(n_codes, size, decay=0.95),
        positions,
        "gaussian-learned",
    )
    updates = pv.CodebookUpdates()
    fit = pv.SVI(epochs, batch_size=128, optimizer=pv.adam(2e-3), callbacks=[updates]).fit(vq, digits.train)
    print(fit)

    x = digits.test
    error = (fit.reconstruct(x) - x).square().sum() / (x - digits.train.mean(0)).square().sum()
    print(f"squared error over variance {error:.3f}, perplexity {fit.model.perplexity(x):.1f} of {n_codes} codes")
    law = pv.code_priors.Autoregressive(positions, n_codes, hidden=32)
    two = pv.refit_codes(fit, digits.train, law)
    gain = (two.elbo(x) - fit.elbo(x)).mean().item()
    print(f"the law of the codes gains {gain:.2f} nats per image over the uniform one, held out")
    drawn = two.sample(8)

    assert error < 0.5
    assert fit.model.perplexity(x) > n_codes / 4
    assert gain > 0.5
    assert drawn.shape == (8, 64)


if __name__ == "__main__":
    main()
