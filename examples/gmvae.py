"""Clusters of handwritten digits: a mixture VAE that starts at EM's mixture of a VAE's codes."""

import torch

import ppl_vae as pv


def purity(labels, truth, n_components):
    """Share of images whose digit is the most frequent one of their cluster."""
    table = torch.zeros(n_components, 10).index_put((labels, truth), torch.ones(len(truth)), accumulate=True)
    return (table.max(1).values.sum() / len(truth)).item()


def main(epochs=40, n_components=20):
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images, truth = load_digits(return_X_y=True)
    x, truth = torch.tensor(images / 16.0).float(), torch.tensor(truth)
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 128, 8), pv.nets.mlp_decoder(8, 128, 64), "gaussian-learned")
    optimizer = pv.adam(2e-3)
    first = pv.SVI(epochs, batch_size=128, optimizer=optimizer).fit(vae, x).model
    codes = first.posterior(x).mean
    em = pv.EM(n_init=3).fit(pv.models.GaussianMixture(n_components, 8, "diagonal"), codes)

    # The same networks, and EM's mixture as the prior of z: from here both move together.
    model = pv.models.GMVAE(first.encoder, first.decoder, n_components, first.likelihood)
    fit = pv.SVI(epochs, batch_size=128, optimizer=optimizer, start=em.parameters).fit(model, x)
    r = fit.responsibilities(x)
    before, after = (purity(labels, truth, n_components) for labels in (em.labels(codes), r.argmax(1)))
    print(fit)
    print(f"purity of {n_components} clusters: EM on the VAE's codes {before:.2f}, mixture VAE {after:.2f}")

    assert torch.allclose(r.sum(1), torch.ones(len(x)))
    assert after > 0.7
    assert fit.trace["bound"][-1] > fit.trace["bound"][0]


if __name__ == "__main__":
    main()
