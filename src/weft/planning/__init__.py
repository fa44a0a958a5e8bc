"""Choose a layout: enumerate the space, predict it, rank it and explain the choice (torch-free)."""
