"""``weft study engines``: the papers' experiment on real engines of this machine."""
