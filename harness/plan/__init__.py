"""L0, numbers: the run file, the scaling rules and the plan. Nothing here may import torch."""
