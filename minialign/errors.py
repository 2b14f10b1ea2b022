"""The error that a person sees as one line: what is wrong, where, and what to do next."""


class InputError(ValueError):
    """Raised for input that a person can put right."""
