"""The loop and what steers it: guard, adaptive batch, checkpointing, resume."""
