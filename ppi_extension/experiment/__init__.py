"""Experiments: every arm over every seed, from pre-training to a table and a page."""
