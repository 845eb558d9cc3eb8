"""L4, watchers: callables that are told every event of a run."""
