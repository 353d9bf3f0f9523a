"""Helpers that every other folder uses and that import none of them."""
