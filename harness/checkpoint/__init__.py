"""Checkpoints: slices, storage, writer, reader, manifest."""
