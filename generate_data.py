"""Write texts to pre-train on: the same as `mini-transformer generate-data`; `--help` lists the flags."""

from mini_transformer.cli import door

if __name__ == "__main__":
    door("generate-data")
