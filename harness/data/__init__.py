"""Which sample goes where, and how it is read."""
