"""Tests of one module each, in this process."""
