"""EM of one mixture by as many processes as there are: `torchrun --nproc-per-node 4 em_torchrun.py`, or plain python.

The script knows nothing of processes. Each one is given all of the data and sums its share of them; the fit is the
same in all of them, and the same as that of one process. Given a folder, it goes on there after an interruption.
"""

import os
import sys

import torch

import ppl_vae as pv

MEANS = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])


def main(rows=20_000, folder=None):
    x, _ = pv.data.gaussian_mixture(rows, [0.5, 0.3, 0.2], MEANS.tolist(), [torch.eye(2).tolist()] * 3)
    fit = pv.EM(n_init=3, tol=1e-10, checkpoint=folder).fit(pv.models.GaussianMixture(3, 2), x)

    error = torch.cdist(MEANS.double(), fit.parameters["components.loc"]).amin(1).max().item()
    # At the maximum an E-step and an M-step change nothing: shares are mean responsibilities.
    change = (fit.responsibilities(x).mean(0) - fit.parameters["mixing.probs"]).abs().max().item()
    assert fit.status.code == "converged"
    assert error < 0.1, f"a mean is off by {error:.3f}"
    assert change < 1e-4, f"one more iteration changes the shares by {change:.2g}"
    if os.environ.get("RANK", "0") == "0":
        print(fit)
        print(f"the answer is right in {os.environ.get('WORLD_SIZE', '1')} processes: means are within {error:.3f}")


if __name__ == "__main__":
    main(folder=sys.argv[1] if len(sys.argv) > 1 else None)
