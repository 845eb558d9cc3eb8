"""L4, watchers: callables that receive every event of a run."""
