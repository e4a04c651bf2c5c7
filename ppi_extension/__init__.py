"""Meta-learned task weights for multitask pre-training on protein graphs, on the engine of :mod:`ecgmeta.bilevel`."""

from ecgmeta._version import __version__ as __version__
