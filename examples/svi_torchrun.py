"""A VAE trained by as many processes as there are, or by plain python:

    torchrun --nproc-per-node 4 svi_torchrun.py runs/vae

The script knows nothing of processes. Each one is given all of the data and takes its share of every batch, gradients
are summed, and all end with the same parameters. Given a folder, the same command goes on there after an interruption.
"""

import os
import sys

import torch

import ppl_vae as pv


def main(epochs=20, folder=None):
    torch.manual_seed(0)  # the networks' start, the same in every process
    digits = pv.data.images("digits", binarize="dynamic")
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 128, 8), pv.nets.mlp_decoder(8, 128, 64), likelihood="bernoulli")
    engine = pv.SVI(
        epochs,
        batch_size=128,  # of all processes together
        optimizer=pv.adam(3e-3),
        beta=pv.linear(0, 1, epochs=5),
        validation=digits.validation,
        checkpoint=folder,
    )
    fit = engine.fit(vae, digits.train)
    assert fit.status.ok

    p = digits.train.probabilities.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = torch.distributions.Bernoulli(p).log_prob(digits.validation).sum(1).mean().item()
    best = fit.trace["validation"].max().item()
    assert best > independent + 1, f"held-out bound {best:.2f}, independent pixels {independent:.2f} nats per image"
    if folder is not None:  # what the first process wrote is what every process has
        written = engine.fit(vae, digits.train).model.state_dict()
        assert all(torch.equal(value, written[name]) for name, value in fit.model.state_dict().items())
    if os.environ.get("RANK", "0") == "0":
        print(fit)
        print(f"the answer is right in {os.environ.get('WORLD_SIZE', '1')} processes: held-out bound {best:.2f} nats")


if __name__ == "__main__":
    main(folder=sys.argv[1] if len(sys.argv) > 1 else None)
