"""Scheduling rules that the engine and the simulated server share (torch-free)."""
