"""The one error that means "the user can mend this": commands print it as a sentence and exit with status 2."""


class UserError(ValueError):
    """A mistake in what the user gave: a path, a file, an option. Its text is one sentence saying what to do."""
