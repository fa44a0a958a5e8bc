"""Benchmarks: collectives and serving."""
