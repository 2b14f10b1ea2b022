"""The transformer by hand, its products and its attention."""
