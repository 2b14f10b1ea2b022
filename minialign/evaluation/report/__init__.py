"""The page that a run leaves behind; no torch."""
