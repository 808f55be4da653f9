"""Automatic guides over the shared latents, by name."""

from collections.abc import Callable

from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal

__all__ = ["GUIDES"]

GUIDES: dict[str, Callable] = {
    "normal": AutoNormal,
    "lowrank": AutoLowRankMultivariateNormal,
    "multivariate": AutoMultivariateNormal,
    "delta": AutoDelta,
}
