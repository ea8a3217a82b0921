"""Takes a model bundle, gives an engine: something that turns a batch of patches into logits."""

from .engine import Engine, load_engine

__all__ = ["Engine", "load_engine"]
