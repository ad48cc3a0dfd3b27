"""Text in, memory-mapped token shards out; built once, whoever asks. Needs no torch."""
