"""find-batch, lr-range, sweep, branch, bench."""
