"""The one exception for wrong input."""


class UserError(ValueError):
    """The user's input cannot be used. The message is one sentence with the cause and the cure.

    The command line prints the message alone and exits with code 2.
    """
