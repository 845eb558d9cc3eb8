"""L2, the engine: the only floor that knows Accelerate and the checkpoint files."""
