"""Contestants, judges, and the page."""
