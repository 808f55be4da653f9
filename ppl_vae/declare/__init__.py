"""Declarations: from nodes to a Pyro model and guide."""

from ppl_vae.declare.model import LatentVariableModel, NodeInfo
from ppl_vae.declare.nodes import Given, Node, Penalty, Posterior, given, latent, observed, penalty
from ppl_vae.declare.observations import Observations

__all__ = [
    "Given",
    "LatentVariableModel",
    "Node",
    "NodeInfo",
    "Observations",
    "Penalty",
    "Posterior",
    "given",
    "latent",
    "observed",
    "penalty",
]
