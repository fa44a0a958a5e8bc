"""Triton kernels for the decode step and the element-wise parts of prefill (CUDA only)."""
