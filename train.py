"""Train a model: the same as `mini-transformer train`. `python train.py --help` lists the flags."""

from mini_transformer.cli import door

if __name__ == "__main__":
    door("train")
