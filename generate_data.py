"""Write texts to pre-train on: the same as `mini-transformer generate-data`; `--help` lists the flags."""

import sys

from mini_transformer.cli import run

if __name__ == "__main__":
    sys.exit(run("generate-data"))
