"""Train a model: the same as `mini-transformer train`. `python train.py --help` lists the flags."""

import sys

from mini_transformer.cli import run

if __name__ == "__main__":
    sys.exit(run("train"))
