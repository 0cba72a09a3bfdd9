"""The exceptions that the command line answers with their message alone."""


class UserError(ValueError):
    """The user's input cannot be used. The message is one sentence with the cause and the cure.

    The command line prints the message alone and exits with code 2.
    """


class DiskFull(RuntimeError):
    """Something could not be written. The message says which path, how much it needs where that is known, and the cure.

    The command line prints the message alone and exits with code 1.
    """
