"""What is used of PyG, imported without the warnings that its import sets off in torch: no error of ours is to be two lines."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from torch_geometric.data import Data
    from torch_geometric.utils import scatter

__all__ = ["Data", "scatter"]
