"""L1, the built-in recipes. One file each: copy one to start your own."""
