"""The embedded tasks: laws of demonstrations with known answers, recorded flights, and images of
clothes."""
