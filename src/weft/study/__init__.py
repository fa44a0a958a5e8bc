"""``weft study``: run layouts on this machine and account for every collective."""
