"""A model in, text and scores out: everything without a gradient."""
