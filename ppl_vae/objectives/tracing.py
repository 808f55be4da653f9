"""Sites of an ordinary Pyro model and guide."""

from collections.abc import Callable, Collection
from typing import Any

import pyro.distributions as dist
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.enum_messenger import EnumMessenger

from ppl_vae.errors import EngineError
from ppl_vae.objectives.sites import Sites

__all__ = ["data_plate", "is_point", "max_plate_nesting", "trace_sites"]


def trace_sites(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple = (),
    kwargs: dict[str, Any] | None = None,
    given: Collection[str] = (),
) -> Sites:
    """Sites of an ordinary Pyro pair whose data lie in one plate, scales removed, masks kept.

    Plates of other things, such as groups or components, are outside it.

    Parameters
    ----------
    model, guide : callable
        The pair.
    args, kwargs : tuple, dict
        What both are called with.
    given : collection of str
        Shared sites that the model is conditioned on.

    Returns
    -------
    Sites
        Factors of one run of the pair, [*enumerated, n] nats; those outside the plate are summed.

    Raises
    ------
    EngineError
        If the observed sites lie in no vectorised plate or in several: then only the total bound has a meaning.
    """
    kwargs = kwargs or {}
    first = -1 - max_plate_nesting(model, guide, args, kwargs)
    guide_trace = poutine.trace(EnumMessenger(first_available_dim=first)(guide)).get_trace(*args, **kwargs)
    replayed = poutine.replay(EnumMessenger()(model), trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    for trace in (model_trace, guide_trace):
        poutine.util.prune_subsample_sites(trace)
        trace.compute_log_prob()
    plate = data_plate(model_trace, given)
    sites = Sites({}, {})
    for trace, log, fns in ((model_trace, sites.log_p, sites.p), (guide_trace, sites.log_q, sites.q)):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
                log[name] = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
                fns[name] = site["fn"]
    for name in list(sites.log_p):
        if not _inside(model_trace.nodes[name], plate):
            sites.shared_log_p = sites.shared_log_p + sites.log_p.pop(name).sum()
            sites.p.pop(name)
    for name in list(sites.log_q):
        if not _inside(guide_trace.nodes[name], plate):
            sites.shared_log_q = sites.shared_log_q + sites.log_q.pop(name).sum()
            sites.q.pop(name)
    for name, site in model_trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and name not in sites.values:
            sites.values[name] = site["value"]
            dim = site["infer"].get("_enumerate_dim")
            if dim is not None:
                (sites.enumerated if name in guide_trace.nodes else sites.summed)[name] = dim
    sites.sampled = _out_of_order(list(sites.log_p), list(sites.log_q))
    return sites


def _out_of_order(model: list[str], guide: list[str]) -> frozenset[str]:
    """Latents that the guide draws before one that comes before them in the model, and may depend on them."""
    place = {name: i for i, name in enumerate(model)}
    drawn = [name for name in guide if name in place]
    later = {name: drawn[i + 1 :] for i, name in enumerate(drawn)}
    return frozenset(name for name in drawn if any(place[other] < place[name] for other in later[name]))


def max_plate_nesting(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple = (), kwargs: dict[str, Any] | None = None
) -> int:
    """Number of vectorised plate dimensions that a Pyro pair uses, found by running it once.

    Parameters
    ----------
    model, guide : callable
        The pair.
    args, kwargs : tuple, dict
        What both are called with.

    Examples
    --------
    >>> import pyro, torch, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
    >>> max_plate_nesting(model, lambda x: None, (torch.zeros(3),))
    1
    """
    kwargs = kwargs or {}
    with poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    dims = [
        -frame.dim
        for trace in (guide_trace, model_trace)
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return max(dims, default=0)


def data_plate(trace: poutine.Trace, given: Collection[str] = ()) -> str:
    """Name of the plate that the observed sites of a model's trace lie in, the data's.

    Parameters
    ----------
    trace : Trace
        Of a run of the model.
    given : collection of str
        Sites that are conditioned on beside the data.

    Raises
    ------
    EngineError
        If they lie in none or in several vectorised ones, or a latent of a datum lies in another one too.
    """
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    seen = [site for name, site in sites.items() if site["is_observed"] and name not in given]
    data = [site for site in seen if not isinstance(site["fn"], dist.Unit)]  # a factor may be of anything
    observed = {name for site in data or seen for name in _plates(site)}
    inner = {name for site in sites.values() if observed & (own := _plates(site)) for name in own}
    if len(observed) != 1 or inner != observed:
        raise EngineError(
            f"a bound per datum needs exactly one vectorised plate over the data, this pair has "
            f"{sorted(observed | inner) or 'none'}; its total bound is still available"
        )
    return next(iter(observed))


def is_point(guide_trace: poutine.Trace) -> bool:
    """Whether a guide has nothing to draw: all its sites are given values."""
    sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
    laws = [site["fn"] for site in sites if not poutine.util.site_is_subsample(site)]
    return all(isinstance(law, dist.Delta) or isinstance(getattr(law, "base_dist", None), dist.Delta) for law in laws)


def _plates(site: dict[str, Any]) -> set[str]:
    """Names of a site's vectorised plates."""
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def _inside(site: dict[str, Any], plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])
