"""Write with a model: the same as `mini-transformer generate`; `python generate.py --help` lists the flags."""

import sys

from mini_transformer.cli import run

if __name__ == "__main__":
    sys.exit(run("generate"))
