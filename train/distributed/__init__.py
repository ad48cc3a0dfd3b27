"""Ranks, devices, and what ranks agree on."""
