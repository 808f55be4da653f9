"""A file system that refuses: an error of ours that names the user's path and says what to do."""

import subprocess
import sys

import pytest
import torch

import ppl_vae as pv
from ppl_vae.records import writable

# Files end at 2000 bytes, as on a disk that is full.
FULL = """
import resource, signal, sys
import torch
import ppl_vae as pv

vae = pv.models.VAE(pv.nets.mlp_encoder(4, 64, 2), pv.nets.mlp_decoder(2, 64, 4))
fit = pv.SVI(1, progress=False).fit(vae, torch.zeros(5, 4))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
folder = sys.argv[1]
for call in (
    lambda: fit.save(f"{folder}/a.safetensors"),
    lambda: fit.export(f"{folder}/exported"),
    lambda: pv.EM(checkpoint=f"{folder}/kept").fit(pv.models.GaussianMixture(2, 2), torch.randn(500, 2)),
):
    try:
        call()
    except pv.DataError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no limit of files")
def test_a_full_disk(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    saved, exported, kept = done.stdout.splitlines()
    assert saved.startswith(f"cannot write {tmp_path}/a.safetensors: the file system says ")
    assert exported.startswith(f"cannot write {tmp_path}/exported/encoder.pt2: the file system says ")
    assert kept.startswith(f"cannot write {tmp_path}/kept/step-")
    assert kept.endswith("move the folder, and name the new one in checkpoint=")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def point():
    x = torch.zeros(5, 4)
    return pv.SVI(1, progress=False).fit(pv.models.VAE(pv.nets.mlp_encoder(4, 4, 2), pv.nets.mlp_decoder(2, 4, 4)), x)


REFUSED = {
    "a report": writable,
    "a fit": lambda path: point().save(path),
    "programs": lambda path: point().export(path),
    "a checkpoint": lambda path: pv.EM(checkpoint=path, progress=False).fit(
        pv.models.GaussianMixture(1, 1), torch.arange(5.0)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_in_the_place_of_a_folder(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        pv.DataError, match=f"cannot write {tmp_path}/file/a.*the file system says.*choose another place"
    ):
        REFUSED[name](tmp_path / "file" / "a")
