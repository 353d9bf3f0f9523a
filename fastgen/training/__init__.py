"""Training: the loop, its stages, and a network with its optimiser and average."""
