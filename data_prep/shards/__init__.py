"""The on-disk format of tokens: write, read, verify, inspect."""
