"""Train, save, load and apply tokenizers."""
