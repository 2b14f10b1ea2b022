"""A name becomes files, a model and a tokenizer, and back."""
