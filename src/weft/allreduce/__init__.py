"""All-reduce algorithms as transport-free programs, their proof, and their cost."""
