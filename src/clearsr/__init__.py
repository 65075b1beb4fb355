"""ClearSR."""
