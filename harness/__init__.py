"""widebatch: take a training recipe tuned at one batch to any number of GPUs."""
