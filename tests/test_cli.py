"""The program as it is called: exit codes, what goes to which stream, and what is wrong with a bad file."""

import json
import logging
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.cli import app, main
from ppl_vae.cli.inputs import read, training_data
from ppl_vae.cli.options import Compare, Train
from ppl_vae.data import images
from ppl_vae.likelihoods import LIKELIHOODS

FEW = ("--draws", "40", "--warmup", "40", "--chains", "2", "--epochs", "5")
SHORT = ("--epochs", "1", "--hidden", "16", "--latent", "3", "--particles", "3")


@pytest.fixture(autouse=True)
def _logger_as_before():
    logger = logging.getLogger("ppl_vae")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    app.config = ()


def program(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "ppl_vae.cli", *arguments], cwd=cwd, capture_output=True, text=True)


def csv(text):
    return lambda path: path.write_text(text)


def binary(content):
    return lambda path: path.write_bytes(content)


def array(values):
    return lambda path: np.save(path, values)


BAD = {
    "missing": ("absent.csv", lambda path: None, (), "no such file"),
    "empty": ("a.csv", binary(b""), (), "empty"),
    "header only": ("a.csv", csv("u,v\n"), (), "header only"),
    "one row": ("a.csv", csv("u,v\n1,2\n"), (), "single row"),
    "wrong columns": ("a.csv", csv("u,v\n1,2\n2,3\n"), ("--columns", "u", "w"), "'w'"),
    "text": ("a.csv", csv("u,v\n1,2\nx,3\n"), (), "not numeric"),
    "infinite": ("a.csv", csv("u,v\n1,2\ninf,3\n"), (), "infinity"),
    "no Parquet": ("a.parquet", binary(b"hello hello hello"), (), "not a Parquet file"),
    "no .npy": ("a.npy", binary(b"hello hello hello"), (), "not a .npy file"),
    "three dimensions": ("a.npy", array(np.zeros((2, 2, 2))), (), "[2, 2, 2]"),
    "other kind": ("a.xlsx", binary(b"hello"), (), "'.xlsx'"),
    "a folder": ("a.csv", lambda path: path.mkdir(), (), "folder"),
}


@pytest.mark.parametrize("command", ["compare", "train"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind, command, tmp_path, capsys):
    name, make, more, message = BAD[kind]
    make(tmp_path / name)
    code = main([command, "--data", str(tmp_path / name), "--output", str(tmp_path / "out.html"), *more])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("ppl-vae: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--nonsense"], "--nonsense"),
        (["compare", "--seed", "x"], "--seed"),
        (["compare", "--covariance", "round"], "round"),
        (["compare", "--components", "0"], "--components must be at least 1"),
        (["compare", "--components", "2.5"], "a whole number is expected, got '2.5'"),
        (["compare", "--chains", "2.7"], "--chains"),
        (["compare", "--warmup", "1e3"], "--warmup"),
        (["train", "--latent", "2.5"], "--latent"),
        (["train", "--warmup", "2.5"], "--warmup"),
        (["compare", "--seed", "2.5"], "--seed"),
        (["compare", "--seed", "-1"], "seed must be a whole number, at least 0 and below 2**32; got -1"),
        (["train", "--seed", "4294967296"], "seed must be a whole number"),
        (["compare", "--columns", "waitin"], "waiting"),
        (["train", "--data", "digit"], "digits"),
        (["compare", "--data", "digit"], "digits"),
        (["compare", "--data", "digits", "--columns", "a"], "image set"),
        (["train", "--data", "mnist", "--root", "nowhere"], "--download"),
        (["train", "--columns", "a"], "image set"),
        (["train", "--batch-size", "0"], "--batch-size"),
        (["train", "--beta", "-1"], "--beta"),
        (["train", "--beta", "nan"], "--beta"),
        (["train", "--warmup", "-1"], "--warmup"),
        (["nothing"], "nothing"),
        (["compare", "--output", "."], "folder"),
        (["compare", "--output", "/proc/x.html"], "cannot write /proc/x.html: "),
        (["compare", "--config", "absent.toml"], "absent.toml"),
        (["compare", "--output", "r.toml"], "settings go to r.toml"),
        (["compare", "--data", "d.npy", "--output", "./d.npy"], "d.npy is the data"),
        (["train", "--data", "d.toml", "--output", "d.html"], "d.toml is the data"),
    ],
)
def test_usage(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_an_image_set_is_compared_in_its_principal_plane():
    """The two columns are uncorrelated and hold the largest two variances of the pixels."""
    table = read(Compare(data="digits"))
    centred = images("digits").test.double() - images("digits").test.double().mean(0)
    largest = torch.linalg.eigvalsh(centred.T @ centred).flip(0)[:2]
    gram = table.values.T @ table.values
    torch.testing.assert_close(gram, torch.diag(largest), rtol=1e-8, atol=1e-6 * largest[0].item())


def test_no_traceback_and_clean_streams_in_a_process(tmp_path):
    done = program("compare", "--data", "absent.csv", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "absent.csv" in done.stderr


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == pv.__version__
    assert main(["compare", "--help"]) == 0
    assert "--covariance" in capsys.readouterr().out


def test_compare_as_json_in_a_process(tmp_path):
    done = program("compare", "--json", *FEW, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert list(found["fits"]) == ["EM (ML)", "EM (MAP)", "SVI", "NUTS"]
    assert found["fits"]["EM (ML)"]["log_likelihood"] == pytest.approx(-1130.2640, abs=1e-3)
    assert found["data"]["rows"] == 272
    assert found["fits"]["EM (ML)"]["rhat"] is None
    assert "EM on 272 data" in done.stderr
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    settings = tomllib.loads((tmp_path / "report.toml").read_text())
    assert (settings["draws"], settings["seed"], settings["covariance"]) == (40, 0, "full")


@pytest.fixture
def gaps(tmp_path):
    x = pv.data.faithful().values.numpy().copy()
    x[[3, 10], 0] = np.nan
    np.save(tmp_path / "gaps.npy", x)
    return tmp_path / "gaps.npy"


def test_rows_with_nan_are_counted_and_taken_as_missing(gaps, tmp_path, capsys):
    code = main(["compare", "--data", str(gaps), "--strict", "--output", str(tmp_path / "r.html"), *FEW])
    out, err = capsys.readouterr()
    assert "2 of 272 rows hold NaN, taken as missing" in err
    assert "272 data" in out
    x = pv.data.read_table(gaps).values
    best = pv.EM(n_init=5, progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    assert f"maximum of the log-likelihood: {best.log_prob(x).sum():.3f}" in out
    assert "NUTS 90% interval" in out
    # So few draws cannot pass.
    assert code == 3
    assert "diagnostics failed: " in err
    assert "NUTS: R-hat" in err


def test_config_is_read_and_what_is_typed_wins(tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text(f'seed = 7\nepochs = 1\nhidden = 8\nlatent = 2\nparticles = 2\noutput = "{tmp_path}/r.html"\n')
    assert main(["train", "--config", str(config), "--latent", "3", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")
    saved = tomllib.loads((tmp_path / "r.toml").read_text())
    assert (saved["seed"], saved["latent"], saved["hidden"]) == (7, 3, 8)
    first = (tmp_path / "r.html").read_text()
    # What was saved gives the same numbers again.
    assert main(["train", "--config", str(tmp_path / "r.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 7
    values = r"-\d+\.\d{4} ± \d\.\d{4}"
    assert re.findall(values, first) == re.findall(values, (tmp_path / "r.html").read_text())


def test_a_config_beside_the_report_is_kept(tmp_path, capsys):
    config, written = tmp_path / "r.toml", f'# by hand\nepochs = 1\nhidden = 8\noutput = "{tmp_path}/r.html"\n'
    config.write_text(written)
    assert main(["train", "--config", str(config), "--latent", "2", "--particles", "2"]) == 0
    assert config.read_text() == written
    assert "r.toml is left as it is" in capsys.readouterr().err
    assert "--latent 2" in (tmp_path / "r.html").read_text()


def test_unknown_key_of_a_config(tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text("sed = 7\n")
    assert main(["train", "--config", str(config)]) == 2
    assert "sed" in capsys.readouterr().err
    config.write_text('seed = "\n')
    assert main(["train", "--config", str(config)]) == 2


@pytest.mark.parametrize("binarize", ["dynamic", "threshold", "none"])
def test_train_on_images(binarize, tmp_path, capsys):
    code = main(["train", "--binarize", binarize, "--json", "--output", str(tmp_path / "r.html"), *SHORT])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["data"] == {"source": "digits", "train": 1197, "validation": 300, "test": 300, "rows_with_missing": 0}
    assert len(found["evaluation"]["kl_per_unit"]) == 3


def test_a_training_that_ended_is_reported_again_from_its_checkpoint(tmp_path, capsys):
    command = ["train", "--checkpoint", str(tmp_path / "run"), "--json", "--output", str(tmp_path / "r.html"), *SHORT]
    found = []
    for _ in range(2):
        assert main(command) in (0, 3)
        found.append(json.loads(capsys.readouterr().out))
    assert list((tmp_path / "run").glob("step-*.safetensors"))
    assert found[0]["evaluation"] == found[1]["evaluation"]
    assert main([*command, "--seed", "3"]) == 1
    assert "checkpoint of another call" in capsys.readouterr().err


def test_more_epochs_need_the_warm_up_of_the_fewer(tmp_path, capsys):
    output = ["--checkpoint", str(tmp_path / "run"), "--quiet", "--output", str(tmp_path / "r.html")]
    command = ["train", *output, *SHORT[2:], "--epochs"]
    assert main([*command, "1"]) == 0
    assert main([*command, "20"]) == 1
    said = capsys.readouterr().err
    assert "beta.Linear.epochs was 1 there and is 2 here" in said
    assert said.endswith("add --warmup 1\n")
    assert main([*command, "20", "--warmup", "3"]) == 1
    assert "add --warmup" not in capsys.readouterr().err
    assert main([*command, "3", "--warmup", "1"]) == 0


def test_a_large_beta_empties_the_units(tmp_path, capsys):
    page = tmp_path / "r.html"
    options = ["train", "--json", "--output", str(page), "--epochs", "4", *SHORT[2:]]
    carried = []
    for beta in ("0.1", "50"):
        assert main([*options, "--beta", beta, "--warmup", "0"]) in (0, 3)
        carried.append(sum(json.loads(capsys.readouterr().out)["evaluation"]["kl_per_unit"]))
    assert carried[1] < 0.1 < 1 < carried[0]
    assert "the KL term weighted by 50.0" in page.read_text(encoding="utf-8")
    assert main(options) in (0, 3)  # the warm-up is a tenth of the epochs, one at least
    assert "Linear(start=0, end=1.0, epochs=1)" in page.read_text(encoding="utf-8")


def test_train_prints_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["train", "--output", str(tmp_path / "r.html"), *SHORT]) == 0
    out, err = capsys.readouterr()
    for part in ("ELBO", "log p(x)", "KL per unit", "active units"):
        assert part in out
    assert "\x1b" not in out
    assert "training on 1197 data" in err


@pytest.mark.parametrize("likelihood", ["gaussian-learned", "gaussian-network"])
def test_train_on_a_table_with_gaps(likelihood, gaps, tmp_path, capsys):
    options = ["--data", str(gaps), "--likelihood", likelihood, "--json", "--output", str(tmp_path / "r.html")]
    assert main(["train", *options, *SHORT]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["data"]["rows_with_missing"] == 2
    assert "2 of 272 rows hold NaN, taken as missing" in err


EVERYDAY = ("categorical", "gaussian-optimal")


@pytest.mark.parametrize("name", [n if n in EVERYDAY else pytest.param(n, marks=pytest.mark.slow) for n in LIKELIHOODS])
def test_every_likelihood_can_be_trained(name, tmp_path, capsys):
    """Each on data of its own kind, without a word about how to prepare them; the grey levels are found."""
    output = tmp_path / "report.html"
    assert main(["train", "--likelihood", name, "--json", "--output", str(output), *SHORT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert np.isfinite(found["evaluation"]["log_prob"])


def test_grey_levels_are_found_in_the_data():
    settings = {n: training_data(Train(likelihood="categorical", binarize=n)).settings for n in (None, "dynamic")}
    assert settings == {None: {"levels": 17}, "dynamic": {"levels": 2}}
    assert training_data(Train(likelihood="gaussian")).settings == {}


def test_values_outside_the_support_are_bad_input(gaps, tmp_path, capsys):
    options = ["--data", str(gaps), "--likelihood", "bernoulli", "--output", str(tmp_path / "r.html")]
    assert main(["train", *options, *SHORT]) == 2
    assert "x" in capsys.readouterr().err
