"""Slurm job scripts, submission and status."""
