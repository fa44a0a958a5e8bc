"""Latency, memory and throughput of a model on a layout, without running it (torch-free)."""
