"""A trained VAE as two programs of torch.export, run by a script that knows only torch."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import ppl_vae as pv

READER = """
import json, sys
import torch

folder = sys.argv[1]
print(json.dumps(json.load(open(f"{folder}/export.json"))["programs"]["encoder"], indent=2))
encoder = torch.export.load(f"{folder}/encoder.pt2").module()
decoder = torch.export.load(f"{folder}/decoder.pt2").module()
x = torch.load(f"{folder}/images.pt")
loc, scale = encoder(x)                 # q(z | x)
(logits,) = decoder(loc)                # p(x | z) at its mean
torch.save((loc, scale, logits.sigmoid()), f"{folder}/answers.pt")
assert "ppl_vae" not in sys.modules and "pyro" not in sys.modules
"""


def main(epochs=30):
    torch.manual_seed(0)
    digits = pv.data.images("digits", binarize="dynamic")
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 128, 8), pv.nets.mlp_decoder(8, 128, 64), likelihood="bernoulli")
    fit = pv.SVI(epochs, batch_size=128, optimizer=pv.adam(3e-3), progress=False).fit(vae, digits.train)
    with tempfile.TemporaryDirectory() as scratch:
        folder = fit.export(Path(scratch) / "vae")
        torch.save(digits.test, folder / "images.pt")  # 300 images; the programs take any number
        done = subprocess.run([sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        loc, scale, image = torch.load(folder / "answers.pt")
    print(done.stdout)
    q = fit.posterior(digits.test).base_dist
    assert torch.allclose(loc, q.loc, atol=1e-5)
    assert torch.allclose(scale, q.scale, atol=1e-5)
    assert torch.allclose(image, fit.model.x(q.loc).mean, atol=1e-5)
    print(f"encoder and decoder say elsewhere what they say here, for {len(image)} images")


if __name__ == "__main__":
    main()
