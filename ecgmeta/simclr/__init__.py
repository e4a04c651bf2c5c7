"""SimCLR on ECG: two views of a record attract, views of other records repel (Chen et al., 2020)."""

from ecgmeta.simclr.model import SimCLR
from ecgmeta.simclr.views import Views, draw_views
from ecgmeta.simclr.weights import ExampleWeights

__all__ = ["ExampleWeights", "SimCLR", "Views", "draw_views"]
