"""Write with a model: the same as `mini-transformer generate`; `python generate.py --help` lists the flags."""

from mini_transformer.cli import door

if __name__ == "__main__":
    door("generate")
