"""Every example runs, on few draws, and asserts its own answer; none can go untested."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

FEW = {
    "em_torchrun": {},
    "em_variations": {},
    "svi_torchrun": {},
    "kmeans_is_em": {},
    "choose_components": {"sizes": range(1, 4), "n_init": 2, "refits": 100},
    "compare_mixture": {"draws": 150, "epochs": 400},
    "train_vae": {"epochs": 25},
    "hierarchical_vae": {},
    "conditional_vae": {"epochs": 30},
    "semi_supervised_vae": {},
    "posterior_collapse": {},
    "prior_hole": {},
    "variance_explosion": {},
    "vq_vae": {},
    "gmvae": {},
    "train_resume": {"epochs": 6},
    "custom_loop": {},
    "export_model": {"epochs": 2},
    "new_model": {"draws": 150},
    "plain_pyro_pair": {},
    "from_sklearn": {},
    "missing_values": {},
    "mixed_table": {},
    "mixture_of_regressions": {},
    "literal_pyro": {},
    "vb_mixture": {"starts": 3},
    "calibration": {},
    "large_file": {"gigabytes": 0.02},
    "zero_inflated_counts": {},
    "eight_schools": {},
}


def test_every_example_is_run():
    assert set(FEW) == {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.param_store
@pytest.mark.parametrize("name", FEW)
def test_example(name):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**FEW[name])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_learned_priors_leave_less_of_the_prior_in_holes_at_every_seed(seed):
    runpy.run_path(str(EXAMPLES / "prior_hole.py"))["main"](seed=seed)


def test_the_new_model_is_short():
    source = (EXAMPLES / "new_model.py").read_text().split("class ")[1].split("\n\n\ndef")[0]
    assert len([line for line in source.splitlines() if line.strip()]) < 25
