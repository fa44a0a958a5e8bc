"""Start or join the ranks of a run, and end them all when one fails."""
