"""A model made ready: optimizer, compile, FLOPs, noise meter, timers."""
