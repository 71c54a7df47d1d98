"""The regular expressions of `patterns.toml`, by name."""

import re
import tomllib
from importlib import resources

_FILE = resources.files("mini_transformer.synthesis") / "patterns.toml"
PATTERNS: dict[str, re.Pattern[str]] = {
    name: re.compile("".join(map(str.strip, pattern.splitlines())), re.IGNORECASE | re.MULTILINE)
    for group in tomllib.loads(_FILE.read_text(encoding="utf-8")).values()
    for name, pattern in group.items()
}
