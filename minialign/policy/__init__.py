"""A model with adapters: `sample` writes, `score` reads."""
