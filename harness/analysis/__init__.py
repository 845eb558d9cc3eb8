"""What is read out of journals afterwards: records, comparisons, sweeps, fits."""
