"""What the processes of one run tell each other to survive, without torch: pulses, locks, exit statuses, stops."""
