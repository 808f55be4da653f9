"""Fashion-MNIST: squared error over variance, and use of the codebook, of VQ-VAEs; and laws of their codes.

Grey images in [0, 1]: 50,000 to train on, 10,000 to measure on (the validation images are not used, since nothing is
chosen). Two convolutions, kernel 4 and stride 2, halve height and width to 7 x 7 positions, each with one of 512 codes
of 64 numbers; the decoder is their mirror image; the Gaussian likelihood has one learned scale. 5 epochs of batches of
128 by Adam at 2e-3, commitment 0.25, decay 0.99, dead codes revived at epoch ends. Then laws of the codes are fitted to
those of the training images: independent positions (5 epochs), and an autoregressive one (a gated recurrent layer of 64
units, 2 epochs).

Error over variance is sum (x - x^)^2 / sum (x - m)^2 over the test images, m the mean of all training pixels, one
number, as in the program published with the VQ-VAE (van den Oord, Vinyals and Kavukcuoglu 2017), which does so on
CIFAR-10. No number published for these networks on these images is known to us: Takida et al. (2022, SQ-VAE) train
residual networks with 256 codes on them, another model.
"""

import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ppl_vae as pv

EPOCHS, BATCH, RATE = 5, 128, 2e-3
SIDE, CODES, SIZE, CHANNELS = 7, 512, 64, (16, 32)
POSITIONS, SLICE = SIDE**2, 1000
ROWS = {
    "moving averages": lambda: pv.codebooks.Averaged(CODES, SIZE),
    "learned": lambda: pv.codebooks.Learned(CODES, SIZE),
}
"""How the codebook moves."""
LAWS = {
    "independent": (lambda: pv.code_priors.Independent(POSITIONS, CODES), 5, 1e-2),
    "autoregressive": (lambda: pv.code_priors.Autoregressive(POSITIONS, CODES), 2, 3e-3),
}
"""Laws of the codes, and the epochs and rate of their fits."""
UNIFORM = POSITIONS * math.log(CODES)


class Encoder(nn.Module):
    """x [..., 784] to an encoding of each position, [..., 49 * 64]."""

    def __init__(self) -> None:
        super().__init__()
        a, b = CHANNELS
        halve = {"kernel_size": 4, "stride": 2, "padding": 1}
        layers = nn.Conv2d(1, a, **halve), nn.ReLU(), nn.Conv2d(a, b, **halve), nn.ReLU(), nn.Conv2d(b, SIZE, 1)
        self.net = nn.Sequential(nn.Unflatten(-1, (1, 28, 28)), *layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).permute(0, 2, 3, 1).flatten(1)


class Decoder(nn.Module):
    """Codes [..., 49 * 64] to [..., 784]."""

    def __init__(self) -> None:
        super().__init__()
        a, b = CHANNELS
        double = {"kernel_size": 4, "stride": 2, "padding": 1}
        layers = nn.ConvTranspose2d(b, a, **double), nn.ReLU(), nn.ConvTranspose2d(a, 1, **double), nn.Flatten()
        self.net = nn.Sequential(nn.Conv2d(SIZE, b, 1), nn.ReLU(), *layers)

    def forward(self, z: Tensor) -> Tensor:
        image = z.reshape(-1, SIDE, SIDE, SIZE).permute(0, 3, 1, 2)
        return self.net(image).reshape(*z.shape[:-1], 784)


# One run: train, measure, fit the laws of the codes; each part is kept, and goes on from where it was interrupted.


def result(name: str, seed: int, data: Any, arguments: Any) -> dict[str, Any]:
    """The record of one run, from its file if it is finished."""
    folder = Path(arguments.folder) / f"vqvae-{name.replace(' ', '-')}-{seed}"
    file = folder / "result.json"
    if file.exists():
        return json.loads(file.read_text())
    train, test = data
    torch.manual_seed(seed)
    model = pv.models.VQVAE(Encoder(), Decoder(), ROWS[name](), POSITIONS).to(arguments.device)
    updates = pv.CodebookUpdates()
    fit = engine(folder / "model", arguments.epochs or EPOCHS, RATE, seed, arguments, [updates]).fit(model, train)
    record = {"row": name, "seed": seed, "status": str(fit.status), "epochs": len(fit.trace["bound"])}
    record |= {"bounds": fit.trace["bound"].tolist(), "perplexities": updates.perplexity}
    record |= {"seconds_training": fit.trace["seconds"][-1].item(), **arguments.machine()}
    if not fit.status.ok:
        return record
    record |= measure(fit, train, test)
    record["code_nats"], record["seconds_laws"] = laws(fit, train, test, folder, seed, arguments)
    file.write_text(json.dumps(record, indent=1))
    return record


def engine(folder: Path, epochs: int, rate: float, seed: int, arguments: Any, callbacks: Any = ()) -> pv.SVI:
    return pv.SVI(
        epochs=epochs,
        batch_size=BATCH,
        optimizer=pv.adam(rate),
        checkpoint=folder,
        callbacks=callbacks,
        compile=arguments.compile,
        seed=seed,
        progress=False,
    )


def measure(fit: pv.Fit, train: Tensor, test: Tensor) -> dict[str, float]:
    """Errors of the reconstruction of held-out images, the codes in use, and the bound."""
    error = (fit.reconstruct(test).cpu() - test).double().square().sum()
    variance, by_pixel = ((test - mean).double().square().sum() for mean in (train.mean(), train.mean(0)))
    return {
        "error_over_variance": (error / variance).item(),
        "error_over_variance_by_pixel": (error / by_pixel).item(),
        "mean_squared_error": error.item() / test.numel(),
        "perplexity": fit.model.perplexity(test).item(),
        "codes_used": len(fit.model.codes(test).unique()),
        "bound": bound(fit, test),
    }


def laws(fit: pv.Fit, train: Tensor, test: Tensor, folder: Path, seed: int, arguments: Any) -> Any:
    """-log p(c) of the held-out images' codes under each law, nats per image; and pictures drawn from each."""
    begin, nats, before = time.perf_counter(), {"uniform": UNIFORM}, bound(fit, test)
    drawn = {"test images": test[:10], "their codes": fit.reconstruct(test[:10]).cpu()}
    for name, (law, epochs, rate) in LAWS.items():
        torch.manual_seed(seed)
        fitted = pv.refit_codes(fit, train, law(), engine(folder / name, epochs, rate, seed, arguments))
        nats[name] = UNIFORM - (bound(fitted, test) - before)
        drawn[name] = means(fitted)
    save_picture({**drawn, "uniform": means(fit)}, folder / "images.png")
    return nats, time.perf_counter() - begin


def bound(fit: pv.Fit, images: Tensor) -> float:
    return torch.cat([fit.elbo(part, seed=k).double() for k, part in enumerate(images.split(SLICE))]).mean().item()


def means(fit: pv.Fit) -> Tensor:
    """E[x | z] of codes drawn from the prior."""
    with torch.no_grad():
        return fit.model.x(fit.model.z().sample((10,))).mean.cpu()


def save_picture(rows: dict[str, Tensor], path: Path) -> None:
    """Ten images of each kind, a kind a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.1 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 10)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image.reshape(28, 28).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right")
    figure.savefig(path, dpi=80)


# The table


def options(parser: Any) -> None:
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--epochs", type=int, help="other than the table's, to try things out")


def run(arguments: Any) -> Iterator[dict[str, Any]]:
    grey = pv.data.images("fashion-mnist", root=arguments.root)
    for seed in arguments.seeds:
        for name in arguments.rows:
            yield result(name, seed, (grey.train, grey.test), arguments)


def text(results: list[dict[str, Any]]) -> str:
    kinds = ["uniform", *LAWS]
    head = "".join(f"{kind:>16}" for kind in kinds)
    lines = [
        f"{'':<17}{'error over':>16}{'perplexity':>16}{'nats of the codes of an image under each law':>48}",
        f"{'codebook':<17}{'variance':>16}{f'of {CODES}':>16}{head}{'seeds':>9}{'hours':>7}",
    ]
    for name in dict.fromkeys(record["row"] for record in results):
        done = [record for record in results if record["row"] == name and "code_nats" in record]
        if not done:
            lines.append(f"{name:<17}{'not finished':>16}")
            continue
        error, used = (spread([r[key] for r in done], d) for key, d in (("error_over_variance", 4), ("perplexity", 1)))
        nats = "".join(f"{spread([r['code_nats'][kind] for r in done], 1):>16}" for kind in kinds)
        hours = sum(r["seconds_training"] + r["seconds_laws"] for r in done) / 3600
        seeds = ",".join(str(r["seed"]) for r in done)
        lines.append(f"{name:<17}{error:>16}{used:>16}{nats}{seeds:>9}{hours:>7.1f}")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(set(values)) > 1 else mean
