"""Long counts."""
