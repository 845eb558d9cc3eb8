"""Starting, watching and restarting processes; the run folder."""
