"""Configuration, seeds, checkpoints, logs, progress and devices: what every run needs, in any domain."""
