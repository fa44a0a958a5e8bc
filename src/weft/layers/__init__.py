"""Layer classes that know their shard."""
