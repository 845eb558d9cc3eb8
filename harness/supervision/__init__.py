"""What the processes of a run tell each other: heartbeat, lock, signals, exit codes."""
