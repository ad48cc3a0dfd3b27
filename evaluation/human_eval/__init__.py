"""Human evaluation: blind tests of whether people can tell a model's texts from human ones."""
