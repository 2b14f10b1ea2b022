"""What every run needs; it knows no method."""
