"""What a φ step costs before one was timed."""

from __future__ import annotations

from ecgmeta.experiment.config import Experiment

PRODUCT = {"low_precision": 0.6, "double_backward": 1.3, "forward_over_reverse": 1.3, "cheapest": 1.0}
"""Cost of one product of a φ step in plain steps as measured on two CPUs, for as long as no φ step was timed."""


def phi_step_guess(config: Experiment) -> float:
    """A φ step in plain steps, by counting passes: its own plain step; for each draw v, which takes a labelled batch through
    the encoder, the J products Hu, and Mᵀu; for each further draw the pre-training loss on its own batch."""
    meta, draws = config.meta, config.meta.accumulate
    terms = meta.terms if meta.inverse == "neumann" else 0
    v = meta.batch_size / config.pretrain.batch_size
    return 1 + draws * (v + PRODUCT[meta.products] * (terms + 1)) + (draws - 1)
