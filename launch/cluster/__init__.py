"""Several hosts: torchrun, Slurm, Kubernetes."""
