"""Records of a run: what it leaves on disk."""
