"""Declarations: from nodes to a Pyro model and guide."""

from ppl_vae.declare.model import LatentVariableModel, NodeInfo
from ppl_vae.declare.nodes import Given, Node, Posterior, given, latent, observed
from ppl_vae.declare.observations import Observations

__all__ = [
    "Given",
    "LatentVariableModel",
    "Node",
    "NodeInfo",
    "Observations",
    "Posterior",
    "given",
    "latent",
    "observed",
]
