"""Jobs: what the recipes run, from a config to a folder."""
