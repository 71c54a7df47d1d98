"""Show that no run of eight words of the embedded fables is in other texts.

    python tools/originality.py FOLDER_OR_FILE...

Words are runs of French letters in lower case, so that « l'un » is two. Exit code 1 if there is a shared run.
"""

import sys
from pathlib import Path

from mini_transformer.data.ngrams import RUN, word_runs
from mini_transformer.data.reading import read_text
from mini_transformer.data.sources import text_files
from mini_transformer.text.fables import load_fables


def main(arguments: list[str]) -> int:
    """Compare, and print what is shared."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    ours = {run: fable.title for fable in load_fables() for run in word_runs(fable.text)}
    print(f"{len(ours):,} runs of {RUN} words in the fables")
    shared = 0
    for path in (file for argument in arguments for file in text_files(Path(argument))):
        found = {run for run in word_runs(read_text(path)) if run in ours}
        shared += len(found)
        print(f"{path.name}: {len(found)} shared")
        for run in sorted(found):
            print(f"  {ours[run]}: {run}")
    return 1 if shared else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
