"""Fashion-MNIST: importance-weighted log p(x) of one-layer VAEs by the recipe that published numbers come from.

The recipe (Tomczak and Welling 2018; Norouzi, Fleet and Norouzi 2020, whose table the published numbers are from): the
first 50,000 training images, binarised anew each time; the last 10,000 for validation and the 10,000 test images,
binarised once with numpy's seed 777, validation first. Two gated layers of 300 on each side, 40 latent units,
log-variances in [-6, 2]; batches of 100; Adam at 5e-4 on gradients divided by their norm; beta = epoch / 100 for 100
epochs. Then 5,000 draws of q for each test image.

What differs: 550 epochs with the Gaussian prior and 500 with others, in the last 50 of which the learning rate falls to
zero by a cosine, where the published one is constant and training ends when 50 epochs bring no better validation bound;
the pseudo-inputs are sigmoids of what starts at -0.05, sd 0.01 (the published program cuts off at 0 and 1 instead,
which gives pseudo-inputs below 0 no gradient); decoder probabilities are not cut off at 1e-5. `--rows constant` is the
published recipe, but for an epoch counting as better when the validation bound rises by more than its standard error,
image by image at the same noise. The best row goes on from the VampPrior's fit of the same seed for 40 epochs: the
importance-weighted bound of 16 particles with its doubly reparameterised gradient, no warm-up, and a learning rate that
falls from 5e-4 to zero.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

import ppl_vae as pv

EPOCHS, FALL, WARM_UP, BATCH, RATE, DRAWS = 500, 50, 100, 100, 5e-4, 5000
LONGER = 550
"""Epochs of the row with a Gaussian prior, whose validation bound still rises after 500."""
MORE = 40
"""Epochs of a row that goes on from another one."""
PIXELS, HIDDEN, UNITS, PSEUDO_INPUTS = 784, 300, 40, 500
SLICE = 1000
"""Images whose bound is looked at together."""


def gated(prior=None, posterior=None, hidden=HIDDEN):
    encoder = pv.nets.gated_encoder(PIXELS, hidden, hidden, UNITS, log_variance=(-6, 2))
    decoder = pv.nets.gated_decoder(UNITS, hidden, hidden, PIXELS)
    return pv.models.VAE(encoder, decoder, prior=prior, posterior=posterior)


def vamp():
    return pv.priors.Vamp(PSEUDO_INPUTS, PIXELS, loc=-0.05, scale=0.01)


@dataclass(frozen=True)
class Row:
    """A line of the table: a model, what it is trained on, and what is known or wanted of -log p(x), nats."""

    model: Callable[[], pv.LatentVariableModel]
    published: str = ""
    goal: float | None = None
    objective: object = field(default_factory=pv.elbo)
    epochs: int = EPOCHS
    fall: int = FALL
    """Epochs at the end in which the learning rate falls to zero."""
    patience: int | None = None
    """With it the learning rate is constant."""
    after: str | None = None
    """The row whose fit of the same seed it goes on from, with no warm-up."""

    def reached(self, value):
        """The goal, whether a value of -log p(x) meets it, and what lies between the two."""
        if self.goal is None:
            return ""
        return f"{self.goal}, {'met' if value <= self.goal else 'missed'} by {abs(value - self.goal):.2g}"

    def optimizer(self):
        adam = pv.normalized(pv.adam(RATE))
        if self.patience:
            return adam
        return pv.scheduled(adam, LambdaLR, lr_lambda=self.rate)

    def rate(self, epoch):
        """The learning rate as a part of the first one: constant, then half a cosine down to zero."""
        part = (epoch - (self.epochs - self.fall)) / self.fall
        return (1 + math.cos(math.pi * min(1, max(0, part)))) / 2


CANDIDATES = {
    "vamp, then iwae": Row(lambda: gated(vamp()), objective=pv.iwae(16, "dreg"), epochs=MORE, fall=MORE, after="vamp"),
    "vamp, wide": Row(lambda: gated(vamp(), hidden=500)),
    "vamp, flow": Row(lambda: gated(vamp(), pv.posteriors.inverse_autoregressive(UNITS))),
}
"""Models of one stochastic layer and MLPs of about that size; which one is the best row is decided on validation."""
OTHERS = {
    "constant": Row(gated, "228.70 ± 0.15", 228.7, epochs=2000, patience=50),
    "gaussian, 500": Row(gated, "228.70 ± 0.15", 228.7),
}
"""Other recipes of the row `gaussian`, on the test images too."""
BEST = "vamp, then iwae"
ROWS = {
    "gaussian": Row(gated, "228.70 ± 0.15", 228.7, epochs=LONGER),
    "vamp": Row(lambda: gated(vamp()), "227.35 ± 0.05", 227.3),
    "best": replace(CANDIDATES[BEST], published="226.75 (Exemplar VAE)", goal=226.75),
}
ALL = {**CANDIDATES, **OTHERS, **ROWS}


def warm_up(epoch):
    """The weight of the KL term, the same within an epoch."""
    return min(1.0, (math.floor(epoch) + 1) / WARM_UP)


# Data


def load(root):
    """Training images that are drawn anew, validation and test images drawn once."""
    grey = pv.data.images("fashion-mnist", root=root)
    draw = np.random.RandomState(777)

    def binary(pixels):
        return torch.from_numpy(draw.binomial(1, (pixels * 255).round().double().numpy() / 255)).float()

    return pv.data.DynamicBinary(grey.train), binary(grey.validation), binary(grey.test)


# One run: train, then look at the test images once.


def train(name, seed, data, arguments):
    """The fit of one row and seed, from its file if there is one; everything on the way there resumes."""
    row, folder = ALL[name], place(name, seed, arguments)
    if (file := folder / "fit.safetensors").exists():
        return pv.Fit.load(file, row.model().to(arguments.device))
    start = train(row.after, seed, data, arguments) if row.after else "auto"
    images, validation, _ = data
    torch.manual_seed(seed)
    model = row.model().to(arguments.device)
    engine = pv.SVI(
        epochs=arguments.epochs or row.epochs,
        batch_size=BATCH,
        optimizer=row.optimizer(),
        objective=row.objective,
        beta=1.0 if row.after else warm_up,
        validation=list(validation.split(SLICE)),
        patience=row.patience,
        checkpoint=folder,
        start=start,
        compile=arguments.compile,
        seed=seed,
    )
    fit = engine.fit(model, images)
    if fit.status.ok:
        fit.save(file)
    return fit


def place(name, seed, arguments):
    """Where a run is kept; the best row is the training of its candidate."""
    return Path(arguments.folder) / f"{(BEST if name == 'best' else name).replace(', ', '-').replace(' ', '-')}-{seed}"


def result(name, seed, data, arguments):
    """The record of one run, from its file if it is finished."""
    part = "validation" if name in CANDIDATES else "test"
    folder = place(name, seed, arguments)
    file = folder / ("result.json" if part == "test" else "candidate.json")
    if file.exists():
        return json.loads(file.read_text())
    fit = train(name, seed, data, arguments)
    bounds = fit.trace["validation"].tolist()
    record = {"row": name, "seed": seed, "status": str(fit.status), "epochs": len(bounds), "validation": bounds}
    record |= {"seconds_training": fit.trace["seconds"][-1].item(), "after": ALL[name].after, **arguments.machine()}
    if not fit.status.ok:
        return record
    record["images"] = part
    record |= evaluate(fit, data[2 if part == "test" else 1], folder / f"{part}.safetensors", arguments)
    file.write_text(json.dumps(record, indent=1))
    return record


def evaluate(fit, images, checkpoint, arguments):
    begin = time.perf_counter()
    found = pv.log_evidence(fit, images, arguments.draws, checkpoint=checkpoint, compile=arguments.compile)
    bound = torch.cat([fit.elbo(part, seed=k).double() for k, part in enumerate(images.split(SLICE))])
    ess = found.effective_sample_size
    return {
        "draws": arguments.draws,
        "nll": -found.value.mean().item(),
        "nll_error_over_images": (found.value.std() / len(found.value) ** 0.5).item(),
        "nll_error_of_draws": (found.standard_error.square().sum().sqrt() / len(ess)).item(),
        "negative_elbo": -bound.mean().item(),
        "ess": {"least": ess.min().item(), "median": ess.median().item()},
        "k_hat": {"median": found.k_hat.median().item(), "above 0.7": (found.k_hat > 0.7).double().mean().item()},
        "seconds_evaluation": time.perf_counter() - begin,
    }


# The table.


def options(parser):
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ALL))
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of q for each image")
    parser.add_argument("--epochs", type=int, help="an earlier end than the recipe's, to try things out")


def run(arguments):
    data = load(arguments.root)
    for seed in arguments.seeds:
        for name in arguments.rows:
            yield result(name, seed, data, arguments)


def text(results):
    head = f"{'model':<14}{'-log p(x), nats':>18}{'published':>24}{'goal':>26}{'seeds':>9}{'epochs':>16}{'hours':>7}"
    lines = [head]
    for name in dict.fromkeys(record["row"] for record in results):
        done = [record for record in results if record["row"] == name and "nll" in record]
        row = ALL[name]
        if not done:
            lines.append(f"{name:<14}{'not finished':>18}")
            continue
        values, hours = [r["nll"] for r in done], sum(r["seconds_training"] + r["seconds_evaluation"] for r in done)
        mean, spread = statistics.mean(values), f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        seeds, epochs = ",".join(str(r["seed"]) for r in done), ", ".join(str(r["epochs"]) for r in done)
        lines.append(
            f"{name:<14}{f'{mean:.2f}{spread}':>18}{row.published:>24}{row.reached(mean):>26}"
            f"{seeds:>9}{epochs:>16}{hours / 3600:>7.1f}"
        )
    return "\n".join(lines)
