"""What is measured and derived during a run."""
