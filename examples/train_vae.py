"""A VAE on handwritten digits: warm-up of the KL term, held-out bound, importance-weighted log p(x)."""

import torch

import ppl_vae as pv


def main(epochs=60):
    torch.manual_seed(0)
    digits = pv.data.images("digits", binarize="dynamic")
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 128, 8), pv.nets.mlp_decoder(8, 128, 64), likelihood="bernoulli")
    engine = pv.SVI(
        epochs,
        batch_size=128,
        optimizer=pv.adam(3e-3),
        beta=pv.linear(0, 1, epochs=10),
        validation=digits.validation,
        patience=20,
    )
    fit = engine.fit(vae, digits.train)
    found = fit.evaluate(digits.test, num_particles=200)
    print(fit, found, sep="\n")

    # Independent pixels, the model without a latent, are what a VAE must beat; and the bound must be a bound.
    p = digits.train.probabilities.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = torch.distributions.Bernoulli(p).log_prob(digits.test).sum(1).mean().item()
    print(f"independent pixels: {independent:.3f} nats per datum")
    assert found.log_prob > independent + 1
    assert found.elbo <= found.log_prob + 3 * found.elbo_se
    before, after = dict(vae.named_parameters()), dict(fit.model.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before), "a parameter did not move"
    assert fit.sample(4).shape == (4, 64)


if __name__ == "__main__":
    main()
