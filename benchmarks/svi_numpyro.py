"""NumPyro's side of svi.py: reads one question a line, answers in JSON. Needs numpyro and jax, and nothing else."""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam


def encode(p, x):
    h = jax.nn.softplus(x @ p["encoder.hidden.weight"].T + p["encoder.hidden.bias"])
    loc = h @ p["encoder.loc.weight"].T + p["encoder.loc.bias"]
    return loc, jnp.exp(h @ p["encoder.log_scale.weight"].T + p["encoder.log_scale.bias"])


def decode(p, z):
    h = jax.nn.softplus(z @ p["decoder.0.weight"].T + p["decoder.0.bias"])
    return h @ p["decoder.2.weight"].T + p["decoder.2.bias"]


class Worker:
    def __init__(self, path, rate, seed):
        stored = np.load(path)
        self.batches, self.test = [jnp.asarray(x) for x in stored["batches"]], jnp.asarray(stored["test"])
        self.start = {k: jnp.asarray(stored[k]) for k in stored.files if k not in ("batches", "test")}
        jax.block_until_ready((self.batches, self.start))
        self.key, self.count, self.begun = jax.random.PRNGKey(seed), 0, time.perf_counter()
        self.svi = SVI(self.model, self.guide, Adam(rate), Trace_ELBO())
        self.state = self.svi.init(self.key, self.batches[0])
        self.update = jax.jit(self.svi.update, donate_argnums=0)
        self.elbo = jax.jit(self.held_out)

    def own(self, part):
        return {k: numpyro.param(k, v) for k, v in self.start.items() if k.startswith(part)}

    def model(self, x):
        p = self.own("decoder")
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 20)), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(p, z)).to_event(1), obs=x)

    def guide(self, x):
        loc, scale = encode(self.own("encoder"), x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def held_out(self, p):
        """Nats per image, eight draws each, the same noise every time."""
        noise = jax.random.normal(self.key, (8, len(self.test), 20))
        loc, scale = encode(p, self.test)
        z = loc + scale * noise
        log_x = dist.Bernoulli(logits=decode(p, z)).log_prob(self.test).sum(-1)
        return (log_x + (jnp.log(scale) + (noise**2 - z**2) / 2).sum(-1)).mean()

    def take(self, steps):
        begin = time.perf_counter()
        for _ in range(steps):
            self.state, loss = self.update(self.state, self.batches[self.count % len(self.batches)])
            self.count += 1
        jax.block_until_ready((self.state, loss))
        return time.perf_counter() - begin

    def alone(self, target, every, most):
        self.take(1)
        first = seconds = time.perf_counter() - self.begun
        while (bound := float(self.elbo(self.svi.get_params(self.state)))) < target and self.count < most:
            seconds += self.take(every)
        return {"first": first, "seconds": seconds, "steps": self.count, "elbo": bound}


def answer(worker, question):
    if "take" in question:
        return worker.take(question["take"])
    if "alone" in question:
        return worker.alone(question["alone"], question["every"], question["most"])
    return f"numpyro {numpyro.__version__}, jax {jax.__version__}"


def main():
    path, rate, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    worker = Worker(path, rate, seed)
    for line in sys.stdin:
        print(json.dumps(answer(worker, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
