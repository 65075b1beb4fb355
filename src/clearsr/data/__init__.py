"""Photographs for training: where they are (sources), decoded (photographs), as batches (crops), checked."""
