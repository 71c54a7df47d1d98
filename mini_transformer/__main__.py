"""`python -m mini_transformer COMMAND ...`, the same as the installed command `mini-transformer`."""

import sys

from mini_transformer.cli import main

sys.exit(main())
