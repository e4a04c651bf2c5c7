"""Protein graphs in, ego graphs with functional labels out: sources, sampling, and a compact store on disk."""
