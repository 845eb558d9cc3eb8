"""What the started processes run."""
