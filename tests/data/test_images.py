import gzip
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.data import DynamicBinary, images
from ppl_vae.errors import DataError

STEMS = {"MNIST": ("train", "t10k"), "EMNIST": ("emnist-balanced-train", "emnist-balanced-test")}
FASHION = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder, stems=STEMS["MNIST"], gz=False, labels=True, sizes=(12, 4), side=4):
    """IDX files whose image i has the label i % 10 and, in its first row and second column, the pixel i."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n in zip(stems, sizes, strict=True):
        pixels = np.zeros((n, side, side), np.uint8)
        pixels[:, 0, 1] = np.arange(n)
        files = {f"{stem}-images-idx3-ubyte": idx(pixels)}
        if labels:
            files[f"{stem}-labels-idx1-ubyte"] = idx(np.arange(n, dtype=np.uint8) % 10)
        for name, content in files.items():
            path = folder / (name + ".gz" * gz)
            path.write_bytes(gzip.compress(content) if gz else content)


def test_digits():
    digits = images("digits")
    assert [len(part) for part in (digits.train, digits.validation, digits.test)] == [1197, 300, 300]
    assert digits.shape == (1, 8, 8)
    assert digits.train.dtype == torch.float32
    assert (digits.train.min(), digits.train.max()) == (0, 1)
    assert {part: len(labels) for part, labels in digits.labels.items()} == {
        "train": 1197,
        "validation": 300,
        "test": 300,
    }
    assert torch.equal(digits.test, images("digits").test)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("below", ["", "MNIST/raw", "mnist"])
def test_idx_files_are_read_where_they_lie(tmp_path, gz, below):
    write(tmp_path / below, gz=gz)
    mnist = images("mnist", root=tmp_path)
    assert [tuple(part.shape) for part in (mnist.train, mnist.validation, mnist.test)] == [(10, 16), (2, 16), (4, 16)]
    assert mnist.shape == (1, 4, 4)
    assert mnist.labels["validation"].tolist() == [0, 1]
    torch.testing.assert_close(mnist.validation[:, 1] * 255, torch.tensor([10.0, 11.0]))


def test_labels_may_be_absent(tmp_path):
    write(tmp_path, labels=False)
    assert images("kmnist", root=str(tmp_path)).labels == {}


def test_emnist_is_turned_upright(tmp_path):
    write(tmp_path / "EMNIST" / "raw", STEMS["EMNIST"])
    x = images("emnist", root=tmp_path).test.reshape(-1, 4, 4)
    torch.testing.assert_close(x[:, 1, 0] * 255, torch.arange(4.0))


def test_without_files_it_says_where_it_looked_and_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*--root.*--download") as refused:
        images("mnist", root=tmp_path)
    assert str(tmp_path / "MNIST" / "raw") in str(refused.value)


IDX = idx(np.zeros((4, 4, 4), np.uint8))
BAD_IDX = {
    "truncated": (IDX[:-3], "holds 61 bytes of data where its header"),
    "too long": (IDX + b"x", "holds 65 bytes"),
    "header cut": (IDX[:9], "is not an IDX file"),
    "empty": (b"", "is not an IDX file"),
    "labels for images": (idx(np.zeros(4, np.uint8)), "is not an IDX file of bytes with 3 dimensions"),
    "a web page": (b"<html>not found</html>", "is not an IDX file"),
    "other size": (idx(np.zeros((4, 5, 5), np.uint8)), "images of one size"),
    "no images": (idx(np.zeros((0, 4, 4), np.uint8)), "4 labels for the 0 images"),
    "wrong count": (idx(np.zeros((5, 4, 4), np.uint8)), "4 labels for the 5 images"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_a_bad_idx_file_is_refused_in_words(tmp_path, case):
    content, message = BAD_IDX[case]
    write(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message):
        images("mnist", root=tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[:-12], lambda _: b"not gzip", lambda c: c[:30] + c[31:]])
def test_a_bad_gz_file_is_refused_in_words(tmp_path, damage):
    write(tmp_path, gz=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="cut short"):
        images("mnist", root=tmp_path)


def test_unknown_names():
    with pytest.raises(DataError, match=r"'fashon-mnist' is not known.*Did you mean 'fashion-mnist'"):
        images("fashon-mnist")
    with pytest.raises(DataError, match="binarize 'sample' is not known; there are: None, 'threshold'"):
        images("digits", binarize="sample")


def test_binarize():
    grey, threshold, fixed = (images("digits", binarize=how) for how in (None, "threshold", "fixed"))
    assert torch.equal(threshold.train, (grey.train >= 0.5).float())
    assert torch.equal(fixed.train, images("digits", binarize="fixed").train)
    assert set(fixed.test.unique().tolist()) == {0.0, 1.0}
    assert (fixed.train.mean(0) - grey.train.mean(0)).abs().max() < 0.06  # four standard errors of 1197 draws
    dynamic = images("digits", binarize="dynamic")
    assert torch.equal(dynamic.test, fixed.test)
    assert torch.equal(dynamic.validation, fixed.validation)
    assert torch.equal(dynamic.train.probabilities, grey.train)


def test_dynamic_binary_draws_anew_and_follows_torch():
    x = DynamicBinary(torch.full((100, 64), 0.5))
    assert len(x) == 100
    assert x.shape == (100, 64)
    rows = torch.tensor([3, 1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = x[rows], x[rows]
        torch.manual_seed(0)
        assert torch.equal(first, x[rows])
    assert first.shape == (2, 64)
    assert not torch.equal(first, second)
    assert x[:7].shape == (7, 64)
    with pytest.raises(DataError, match=r"span \[0, 16\]"):
        DynamicBinary(torch.tensor([[0.0, 16.0]]))


def test_a_broken_torchvision_names_both_versions_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"torchvision \S+ does not work with torch \S+ .*same index") as refused:
        images("mnist", root=tmp_path, download=True)
    assert torch.__version__.partition("+")[0] in str(refused.value)
    write(tmp_path)
    assert len(images("mnist", root=tmp_path, download=True).test) == 4


@pytest.mark.parametrize(
    ("name", "kind", "options"), [("mnist", "MNIST", {}), ("emnist", "EMNIST", {"split": "balanced"})]
)
def test_download_goes_through_torchvision(tmp_path, monkeypatch, capsys, name, kind, options):
    asked = []

    def fetch(root, **given):
        sys.stdout.write("Extracting")
        asked.append(given)
        write(Path(root) / kind / "raw", STEMS[kind])

    package = types.ModuleType("torchvision")
    package.datasets = types.SimpleNamespace(**{kind: fetch})
    monkeypatch.setitem(sys.modules, "torchvision", package)
    assert len(images(name, root=tmp_path, download=True).test) == 4
    assert len(images(name, root=tmp_path, download=True).test) == 4
    assert asked == [{"train": True, "download": True, **options}]
    assert capsys.readouterr().out == ""


def test_a_failed_download_is_one_clear_error(tmp_path, monkeypatch):
    def fetch(root, **given):
        raise RuntimeError("Error downloading train-images")

    package = types.ModuleType("torchvision")
    package.datasets = types.SimpleNamespace(MNIST=fetch)
    monkeypatch.setitem(sys.modules, "torchvision", package)
    with pytest.raises(DataError, match=r"could not download it to .*Error downloading"):
        images("mnist", root=tmp_path, download=True)


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_of_debian():
    fashion = images("fashion-mnist")
    assert [len(part) for part in (fashion.train, fashion.validation, fashion.test)] == [50000, 10000, 10000]
    assert fashion.shape == (1, 28, 28)
    assert fashion.labels["test"].bincount().tolist() == [1000] * 10
    assert fashion.train.mean().item() == pytest.approx(0.286, abs=2e-3)  # the published mean over all 60,000
    assert torch.equal(images("fashion-mnist", root=FASHION).test, fashion.test)


def test_a_fit_answers_for_images_that_are_drawn_anew():
    grey = torch.rand(30, 16, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    x = DynamicBinary(grey)
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(16, 8, 2), pv.nets.mlp_decoder(2, 8, 16))
    fit = pv.SVI(1, batch_size=10, progress=False).fit(vae, x)
    assert fit.posterior(x).mean.shape == (30, 2)
    assert pv.refit_prior(fit, x, 2).model.prior is not None
    # Bound and log p(x) are of one draw of the pixels, so that there is no noise of theirs in the gap.
    found = fit.evaluate(x, num_particles=20)
    assert found.n == 30
    assert -0.01 < found.log_prob - found.elbo < 0.5
    assert fit.evaluate(x, num_particles=20).log_prob == found.log_prob
    assert pv.log_evidence(fit, x, num_particles=20, progress=False).value.shape == (30,)
    # What is held against the replicates are pixels, not probabilities.
    statistics = {"values": lambda pixels: len(np.unique(pixels))}
    for table in (pv.predictive_check(fit, x, statistics, draws=2), pv.predictive_check(fit, None, statistics, 2)):
        assert table.loc["values of x", "observed"] == 2
