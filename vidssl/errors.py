"""The one kind of error that a user of the command line is meant to see."""


class UsageError(ValueError):
    """Something the user can mend. The message is one line: what is wrong, where, and the way out.

    The command line prints it and exits with code 2; every other exception is a defect of the package.
    """
