"""The engines: one declaration, several ways of fitting it."""

from ppl_vae.infer.em import EM

__all__ = ["EM"]
