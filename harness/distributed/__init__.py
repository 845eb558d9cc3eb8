"""Process groups, rendezvous, network interface, shared folders."""
