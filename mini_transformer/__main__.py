"""`python -m mini_transformer COMMAND ...`, the same as the installed command `mini-transformer`."""

from mini_transformer.cli import door

door()
