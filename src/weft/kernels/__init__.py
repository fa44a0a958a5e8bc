"""All-reduce kernels for GPUs: CUDA sources, their compilation, and the communicator.

Importing the package needs neither a GPU nor torch; see weft.kernels.communicator.
"""
