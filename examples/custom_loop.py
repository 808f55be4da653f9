"""A loop of one's own around a traced step: schedules, a held-out bound and the best state are plain Python."""

from copy import deepcopy

import torch

import ppl_vae as pv


def model():
    torch.manual_seed(0)
    return pv.models.VAE(pv.nets.mlp_encoder(64, 128, 8), pv.nets.mlp_decoder(8, 128, 64), likelihood="bernoulli")


def train(vae, digits, epochs, compile="auto"):  # noqa: A002
    """The best held-out bound and the parameters that have it."""
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    step = pv.svi_step(vae, optimizer, compile=compile)
    best, state = float("-inf"), None
    for epoch in range(epochs):
        vae.train()
        rows = torch.randperm(len(digits.train))
        batches = rows[: len(rows) // 128 * 128].split(128)  # one size, one graph
        bounds = [step(digits.train[batch], beta=min(1.0, epoch / 5)) for batch in batches]
        schedule.step()
        vae.eval()
        with torch.random.fork_rng():
            torch.manual_seed(1)  # the same noise every time, so that epochs can be compared
            held_out = vae.elbo(digits.validation).mean().item()
        if held_out > best:
            best, state = held_out, deepcopy(vae.state_dict())
        if epoch % 10 == 0:
            print(f"epoch {epoch:3d}  bound {torch.stack(bounds).mean():.3f}  held out {held_out:.3f} nats per image")
    return best, state


def main(epochs=60):
    digits = pv.data.images("digits", binarize="dynamic")
    vae = model()
    best, state = train(vae, digits, epochs)
    vae.load_state_dict(state)
    p = digits.train.probabilities.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = torch.distributions.Bernoulli(p).log_prob(digits.validation).sum(1).mean().item()
    print(f"best held-out ELBO {best:.3f}, independent pixels {independent:.3f} nats per image")
    assert best > independent + 1
    assert vae.log_prob(digits.test, num_particles=50).mean() > independent + 1

    # The graph and the same step run through Python draw the same noise and see the same bounds.
    few = [train(model(), digits, 2, compile)[0] for compile in ("trace", "off")]  # noqa: A001
    assert abs(few[0] - few[1]) < 1e-3, few


if __name__ == "__main__":
    main()
