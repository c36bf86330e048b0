"""Environments: members play in a `gymnasium.vector.VectorEnv`, whether native, Gymnasium's or the user's."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
