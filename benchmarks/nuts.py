"""NUTS on enumerated mixtures of two normals side by side with Pyro's and NumPyro's: same data, priors and starts.

    python benchmarks/nuts.py --numpyro-python ~/np/bin/python   # the table; with numpyro and funsor there
    python benchmarks/nuts.py --only declared --d 1 --rounds 1

In one dimension normals with a mean and a standard deviation; in two with full covariances, standard deviations and
a Cholesky factor of the correlation under LKJ(2).

Every contender runs in a fresh process whose compilers have nothing cached. Counted is the time from the call to the
draws, tracing and compilation included; imports before the call are not, nutpie's, which happens inside it, is.
Four chains on two cores: ppl_vae's and NumPyro's (four host devices) as their own settings have it, Pyro's in two
processes of two chains each. Pyro runs `--pyro-share` of the iterations; its seconds and effective draws are scaled by
that, and the table says so. NumPyro computes in float32, as it comes, everything else in float64.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

SEED, CHAINS, WARMUP, DRAWS, N = 0, 4, 500, 1000, 1000
SUMMARY = ("loc", "scale", "weights")


def truth(d):
    """What the data are drawn from, and where every chain starts."""
    values = {
        "weights": np.array([0.35, 0.65]),
        "loc": np.array([[-1.5, 0.0], [2.0, 1.0]])[:, :d],
        "scale": np.array([[1.0, 0.7], [0.8, 1.2]])[:, :d],
    }
    correlation = np.linalg.cholesky([[[1.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 1.0]]])
    return values if d == 1 else {**values, "corr": correlation}


def data(d):
    rng, t = np.random.default_rng(SEED), truth(d)
    z = rng.choice(2, size=N, p=t["weights"])
    noise = rng.normal(size=(N, d, 1))
    return t["loc"][z] + t["scale"][z] * (t["corr"][z] @ noise if d > 1 else noise)[..., 0]


# The contenders: each takes dimension, seed and share, and gives seconds and draws [chain, draw, ...] by name.


def declared(d, seed, share):
    """A declared model, `pv.NUTS` as it comes."""
    import pyro.distributions as dist
    import torch

    import ppl_vae as pv

    class Normals(pv.LatentVariableModel):
        @pv.latent(shared=True)
        def weights(self):
            return dist.Dirichlet(torch.ones(2))

        @pv.latent(shared=True)
        def loc(self):
            return dist.Normal(torch.zeros(2, d), 5.0).to_event(2)

        @pv.latent(shared=True)
        def scale(self):
            return dist.LogNormal(torch.zeros(2, d), 1.0).to_event(2)

        @pv.latent
        def z(self, weights):
            return dist.Categorical(weights)

        @pv.observed
        def x(self, z, loc, scale):
            return dist.Normal(loc[z], scale[z]).to_event(1)

    class Full(Normals):
        @pv.latent(shared=True)
        def corr(self):
            return dist.LKJCholesky(d, torch.tensor(2.0)).expand([2]).to_event(1)

        @pv.observed
        def x(self, z, loc, scale, corr):
            return dist.MultivariateNormal(loc[z], scale_tril=(scale[..., None] * corr)[z])

    return ours(Normals() if d == 1 else Full(), d, seed)


def pair(d, seed, share):
    """The Pyro program itself in `pv.NUTS`."""
    return ours(program(d), d, seed)


def ours(model, d, seed):
    import torch

    import ppl_vae as pv

    start = {name: torch.as_tensor(value) for name, value in truth(d).items()}
    engine = pv.NUTS(DRAWS, warmup=WARMUP, num_chains=CHAINS, start=start, seed=seed, progress=False)
    begin = time.perf_counter()
    fit = engine.fit(model, torch.as_tensor(data(d)))
    return time.perf_counter() - begin, {name: fit.draws[name].numpy() for name in SUMMARY}


def program(d):
    import pyro
    import pyro.distributions as dist
    import torch

    def mixture(x):
        zero, one = x.new_zeros(2, d), x.new_ones(())
        weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(2)))
        loc = pyro.sample("loc", dist.Normal(zero, 5 * one).to_event(2))
        scale = pyro.sample("scale", dist.LogNormal(zero, one).to_event(2))
        if d > 1:
            corr = pyro.sample("corr", dist.LKJCholesky(d, 2 * one).expand([2]).to_event(1))
            tril = scale[..., None] * corr
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            if d > 1:
                law = dist.MultivariateNormal(loc[z], scale_tril=tril[z])
            else:
                law = dist.Normal(loc[z], scale[z]).to_event(1)
            pyro.sample("x", law, obs=x)

    torch.set_num_threads(1)
    return mixture


def pyro_chains(d, seed, chains, warmup, draws):
    import pyro
    import torch
    from pyro.infer import MCMC, NUTS
    from pyro.infer.autoguide import init_to_value

    start = {name: torch.as_tensor(value) for name, value in truth(d).items()}
    mixture, found = program(d), []
    begin = time.perf_counter()
    for chain in range(chains):
        pyro.set_rng_seed(seed + chain)
        kernel = NUTS(mixture, init_strategy=init_to_value(values=start), max_plate_nesting=1)
        mcmc = MCMC(kernel, draws, warmup, disable_progbar=True)
        mcmc.run(torch.as_tensor(data(d)))
        found.append({name: value.numpy() for name, value in mcmc.get_samples().items()})
    return time.perf_counter() - begin, {name: np.stack([f[name] for f in found]) for name in SUMMARY}


def pyro_nuts(d, seed, share):
    """Two processes of two chains each, at a share of the iterations: the slower of the two counts."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = [
            pool.submit(pyro_chains, d, seed + 100 * k, CHAINS // 2, round(WARMUP * share), round(DRAWS * share))
            for k in range(2)
        ]
        parts = [job.result() for job in jobs]
    return max(p[0] for p in parts), {name: np.concatenate([p[1][name] for p in parts]) for name in SUMMARY}


def numpyro_nuts(d, seed, share):
    import numpyro

    numpyro.set_host_device_count(CHAINS)
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS, init_to_value

    def mixture(x):
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
        loc = numpyro.sample("loc", dist.Normal(0.0, 5.0).expand([2, d]).to_event(2))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([2, d]).to_event(2))
        if d > 1:
            corr = numpyro.sample("corr", dist.LKJCholesky(d, 2.0).expand([2]).to_event(1))
            tril = scale[..., None] * corr
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            if d > 1:
                law = dist.MultivariateNormal(loc[z], scale_tril=tril[z])
            else:
                law = dist.Normal(loc[z], scale[z]).to_event(1)
            numpyro.sample("x", law, obs=x)

    start = {name: jnp.array(value) for name, value in truth(d).items()}
    begin = time.perf_counter()
    kernel = NUTS(mixture, init_strategy=init_to_value(values=start))
    mcmc = MCMC(kernel, num_warmup=WARMUP, num_samples=DRAWS, num_chains=CHAINS, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(seed), jnp.asarray(data(d)))
    draws = mcmc.get_samples(group_by_chain=True)
    found = {name: np.asarray(draws[name], dtype=float) for name in SUMMARY}
    return time.perf_counter() - begin, found


CONTENDERS = {
    "ppl_vae, declared": declared,
    "ppl_vae, Pyro model": pair,
    "Pyro, 2 processes": pyro_nuts,
    "NumPyro": numpyro_nuts,
}


# A contender in a process of its own.


def run(name, d, seed, share, interpreter):
    """Seconds, draws and versions of a contender, started afresh with empty compiler caches."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "inductor")}
        out = os.path.join(folder, "draws.npz")
        command = [interpreter, __file__, "--one", name, "--d", str(d), "--seed", str(seed)]
        subprocess.run([*command, "--pyro-share", str(share), "--out", out], check=True, env=environment)
        with np.load(out) as found:
            return float(found["seconds"]), {key: found[key] for key in SUMMARY}, json.loads(str(found["versions"]))


def one(name, d, seed, share, out):
    """In that process."""
    seconds, draws = CONTENDERS[name](d, seed, share)
    modules = ("torch", "pyro", "nutpie", "numpyro", "jax")
    versions = {m: sys.modules[m].__version__ for m in modules if m in sys.modules}
    np.savez(out, seconds=seconds, versions=json.dumps(versions), **draws)


# The table.


def quality(draws):
    """Smallest bulk ESS and worst R-hat over the parameters, components in order of their first means."""
    from arviz_stats.base import array_stats

    order = draws["loc"][..., 0].argsort(-1)
    sorted_draws = [np.take_along_axis(v, order.reshape(*order.shape, *[1] * (v.ndim - 3)), 2) for v in draws.values()]
    columns = [v.reshape(*v.shape[:2], -1)[..., j] for v in sorted_draws for j in range(v[0, 0].size)]
    ess = min(float(array_stats.ess(c, chain_axis=0, draw_axis=1, method="bulk")) for c in columns)
    return ess, max(float(array_stats.rhat(c, chain_axis=0, draw_axis=1)) for c in columns)


def line(name, rounds, share):
    scale = share if CONTENDERS[name] is pyro_nuts else 1.0
    seconds = [s / scale for s, _, _ in rounds]
    judged = [quality(draws) for _, draws, _ in rounds]
    ess, total = statistics.median(e / scale for e, _ in judged), statistics.median(seconds)
    means = np.mean([np.sort(draws["loc"][..., 0].mean((0, 1))) for _, draws, _ in rounds], 0)
    note = f"  {share:g} of the iterations, scaled" if scale != 1 else ""
    spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
    worst = max(r for _, r in judged)
    shown = f"{name:22s} {total:8.1f} {spread:>16s} {ess:8.0f} {ess / total:8.1f} {worst:7.3f}"
    return total, ess / total, f"{shown}   {means[0]:6.3f} {means[1]:6.3f}{note}"


def table(d, names, rounds, share, seed, interpreters):
    found = {name: [] for name in names}
    for k in range(rounds):
        for name in names:
            found[name].append(run(name, d, seed + 1000 * k, share, interpreters[name]))
    versions = {module: version for name in names for module, version in found[name][0][2].items()}
    print(f"\ntwo normals in {d} dimension{'s' * (d > 1)}, n = {N}, {CHAINS} x ({WARMUP} + {DRAWS}) iterations")
    print(", ".join(f"{module} {version}" for module, version in versions.items()))
    print(f"{'':22s} {'seconds':>8s} {'range':>16s} {'min ESS':>8s} {'ESS/s':>8s} {'R-hat':>7s}   first means")
    lines = {name: line(name, found[name], share) for name in names}
    for name in names:
        print(lines[name][2])
    first = lines[names[0]]
    for name in names[1:]:
        total, rate, _ = lines[name]
        print(f"{name}: {total / first[0]:.1f} times the seconds of {names[0]}, {rate / first[1]:.2f} of its ESS/s")
    sys.stdout.flush()


def main(given):
    numpyro = given.numpyro_python or (sys.executable if importlib.util.find_spec("numpyro") else None)
    interpreters = {**dict.fromkeys(CONTENDERS, sys.executable), "NumPyro": numpyro}
    names = [name for name in CONTENDERS if (not given.only or given.only in name) and interpreters[name]]
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the first round"
    print(f"date {datetime.date.today()}, seed {given.seed}, {platform.machine()}, {cores}")
    print(f"python {platform.python_version()}, median and range of {given.rounds} rounds")
    for d in given.d:
        table(d, names, given.rounds, given.pyro_share, given.seed, interpreters)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="contenders whose name contains this")
    parser.add_argument("--d", type=int, nargs="+", default=[1, 2], choices=[1, 2], help="dimensions of the data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--pyro-share", type=float, default=0.1, help="share of the iterations that Pyro runs")
    parser.add_argument("--numpyro-python", help="an interpreter that has NumPyro and funsor, where this one has not")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one, asked.d[0], asked.seed, asked.pyro_share, asked.out)
    else:
        main(asked)
