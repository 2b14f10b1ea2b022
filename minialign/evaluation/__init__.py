"""How good is it: measurements, and how they are shown to a person."""
