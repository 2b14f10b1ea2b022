"""What a person brings, as records; no torch."""
