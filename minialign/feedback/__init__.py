"""A sentence becomes data."""
