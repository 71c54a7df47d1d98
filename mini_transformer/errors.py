"""The one exception that is written for people."""


class UserError(Exception):
    """Something the user gave is wrong: one line that says what, where and what to do; exit code 2."""
