"""EM on a file that need not fit in memory: blocks are read again at every iteration, and memory stays bounded.

    python examples/large_file.py --gigabytes 4

writes a mixture of four normals in 16 dimensions to a temporary .npy file of float32, fits it, and compares the fit
with the truth and the peak memory with a bound that does not depend on the size of the file.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import ppl_vae as pv

K, D, BLOCK = 4, 16, 65536


def peak_gigabytes():
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def write(path, gigabytes, truth):
    """Rows x = loc[z] + scale[z] * noise, z ~ Categorical(weights); plain writes, so that no page counts as ours."""
    n = int(gigabytes * 2**30 / (4 * D))
    generator = torch.Generator().manual_seed(1)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, D)})
        for start in range(0, n, BLOCK):
            rows = min(BLOCK, n - start)
            z = torch.multinomial(truth["weights"], rows, replacement=True, generator=generator)
            x = truth["loc"][z] + truth["scale"][z] * torch.randn(rows, D, generator=generator)
            x.numpy().tofile(file)
    return n


def main(gigabytes=0.2, folder=None):
    generator = torch.Generator().manual_seed(0)
    truth = {
        "weights": torch.linspace(1, 2, K) / torch.linspace(1, 2, K).sum(),
        "loc": 2 * torch.randn(K, D, generator=generator),
        "scale": 0.5 + torch.rand(K, D, generator=generator),
    }
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary, "rows.npy")
        n = write(path, gigabytes, truth)
        before = peak_gigabytes()
        print(f"{n:,} rows of {D} float32, {path.stat().st_size / 2**30:.2f} GiB; memory so far {before:.2f} GiB")

        gmm = pv.models.GaussianMixture(K, D, covariance="diagonal")
        begin = time.perf_counter()
        source = pv.data.stream(path)
        # Many starts on a sample cost little; the file is read only for the iterations from the best of them.
        few = pv.EM(n_init=10).fit(gmm, source.sample(20_000).values)
        fit = pv.EM(start=few, tol=1e-7).fit(gmm, source)
        seconds, iterations = time.perf_counter() - begin, len(fit.trace["bound"])
    print(fit)
    print(f"{seconds:.1f} s; {iterations} iterations; peak memory {peak_gigabytes():.2f} GiB")

    # The truth, component by component, within what n rows can tell: 6 standard errors of each number, and float32.
    weights, variance = truth["weights"].double(), truth["scale"].double() ** 2
    loc, covariance = fit.model.components.loc, fit.model.components.covariance
    mine = torch.cdist(truth["loc"].double(), loc).argmin(1)
    assert len(mine.unique()) == K
    rows = n * weights[:, None]
    assert ((fit.model.mixing.probs[mine] - weights).abs() < 6 * (weights * (1 - weights) / n).sqrt()).all()
    assert ((loc[mine] - truth["loc"]).abs() < 6 * (variance / rows).sqrt() + 1e-5).all()
    assert ((covariance[mine] - variance).abs() < 6 * variance * (2 / rows).sqrt() + 1e-5).all()
    assert peak_gigabytes() - before < 1  # GiB, whatever the size of the file


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=0.2)
    parser.add_argument("--folder", help="where the temporary file is written")
    main(**vars(parser.parse_args()))
