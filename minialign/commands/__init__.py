"""From flags to calls."""
