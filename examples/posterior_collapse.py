"""Posterior collapse made to happen, seen by the diagnostic, and mended by warm-up and by free bits."""

import torch

import ppl_vae as pv


def deep_vae():
    """Two hidden layers on either side: early in training the decoder cannot use z yet, and q gives z up."""
    torch.manual_seed(0)
    return pv.models.VAE(pv.nets.mlp_encoder(64, 128, 128, 10), pv.nets.mlp_decoder(10, 128, 128, 64))


def main(epochs=80):
    digits = pv.data.images("digits", binarize="threshold")

    def train(**mend):
        engine = pv.SVI(epochs, 128, pv.adam(3e-3), compile="trace", progress=False, **mend)
        return engine.fit(deep_vae(), digits.train)

    fits = {
        "as it is": train(),
        "warm-up": train(beta=pv.linear(0, 1, epochs=0.75 * epochs)),
        "free bits": train(objective=pv.elbo(free_bits=0.2)),
    }
    found = {name: fit.diagnose(digits.test, gap_data=0) for name, fit in fits.items()}
    for name, diagnosis in found.items():
        log_prob = fits[name].log_prob(digits.test, 200).mean()
        told = diagnosis["mutual information"].text
        print(f"{name:<12}{diagnosis['active units'].text:<12}I(x; z) {told:<24}held-out log p(x) {log_prob:.2f}")
    print(*found["as it is"].advice, sep="\n")

    p = digits.train.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = torch.distributions.Bernoulli(p).log_prob(digits.test).sum(1).mean()
    collapsed = fits["as it is"].log_prob(digits.test, 200).mean()
    assert found["as it is"]["active units"].value == 0
    assert not found["as it is"].ok
    assert f"beta=pv.linear(0, 1, epochs={0.75 * epochs:.0f})" in found["as it is"].advice[0], "the warm-up above"
    assert "pv.elbo(free_bits=0.2)" in found["warm-up"].advice[0], "what comes after a warm-up of that length"
    assert abs(collapsed - independent) < 0.5, "a collapsed VAE is a model of independent pixels"
    for name in ("warm-up", "free bits"):
        assert found[name]["active units"].value >= 3
        assert found[name]["mutual information"].value > 1
        assert fits[name].log_prob(digits.test, 200).mean() > collapsed + 2


if __name__ == "__main__":
    main()
