"""The run file: its schema, strict loading, flags and errors."""
