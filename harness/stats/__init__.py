"""L0, numbers about a run while it runs: events, meters, names of metrics. Nothing here may import torch."""
