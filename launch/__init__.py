"""L5, the command line. Plans in this process, starts training as other processes."""
