"""The one exception a user is meant to read."""


class UserError(ValueError):
    """A mistake in what the user gave: one sentence naming the field, its value, what is allowed and the way out.

    The command line prints it without a traceback and exits with code 2; a library caller can catch it as ValueError.
    """
