"""Shards in, checkpoints out: everything with a gradient."""
