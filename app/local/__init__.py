"""Everything on one machine: embedded stores, a supervisor, and a doctor. Nothing here runs in production."""


class SetUpError(Exception):
    """Something that only a person can mend. The message is one sentence that says what to do."""
