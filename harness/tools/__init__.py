"""Workers of the tools: verify, batch trials, rank checks, export."""
