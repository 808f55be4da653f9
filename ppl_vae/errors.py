"""The errors users meet. Each message says what was given, what was expected and what to do."""

__all__ = ["DataError", "DeclarationError", "EngineError"]


class DeclarationError(TypeError):
    """A model declaration that cannot mean anything: an unknown parent, a cycle, a missing event dimension."""


class DataError(ValueError):
    """Data that a model or a reader cannot take: wrong shape, out of support, missing, not a table at all."""


class EngineError(RuntimeError):
    """A request that an engine or a fit cannot answer, such as EM on a model with a continuous latent."""
