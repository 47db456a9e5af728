"""The one exception that bad input raises, so that a caller can tell it from a defect of this code."""


class ImprintError(ValueError):
    """Bad input: the message says what was got, what was expected and what to do."""
