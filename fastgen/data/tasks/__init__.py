"""Embedded tasks: laws of demonstrations with known answers, and recorded flights,
images of clothes."""
