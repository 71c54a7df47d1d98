"""Imports go down only: each room of the package knows those below it, and no modules import in a circle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

from tests.conftest import ROOT

PACKAGE = ROOT / "mini_transformer"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
# What each room may import, beside itself and what all may. Rooms that are not listed (commands, cli, ...) are on top.
FOR_ALL = "errors files checksums __version__"
MAY_IMPORT = {
    "errors": "",
    "files": "",
    "checksums": "",
    "config": "",
    "settings": "config",
    "recipes": "config settings",
    "runtime": "config",
    "model": "config runtime",
    "text": "config runtime",
    "verse": "config runtime",
    "data": "config runtime text",
    "generation": "config settings runtime model text verse evaluation",
    "export": "config text",
    "evaluation": "config runtime model text verse",
    "training": "config settings recipes runtime model text verse data generation evaluation export",
    "synthesis": "config runtime text data",
}


def imports(module: str, type_checking: bool) -> Iterator[str]:
    """The modules of the package that a module imports, in functions too; those for type checkers only if asked to."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    if not type_checking:
        tree.body = [s for s in tree.body if not (isinstance(s, ast.If) and "TYPE_CHECKING" in ast.unparse(s.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            assert not getattr(node, "level", 0), f"{module}: a relative import"
            for name in (start + alias.name for alias in node.names):
                if name.split(".")[0] == "mini_transformer":
                    path = name.partition(".")[2] or "__init__"  # of a module, or of a name in one
                    yield path if path in MODULES or "." not in path else path.rpartition(".")[0]


def test_rooms_import_only_rooms_below_them() -> None:
    upward = []
    for module in sorted(MODULES):
        room = module.split(".")[0]
        allowed = {room, *FOR_ALL.split(), *MAY_IMPORT.get(room, "").split()}
        for other in imports(module, type_checking=True):
            if room in MAY_IMPORT and other.split(".")[0] not in allowed:
                upward.append(f"{module} imports {other}")
    assert not upward


def test_no_modules_import_in_a_circle() -> None:
    TopologicalSorter({module: set(imports(module, type_checking=False)) for module in MODULES}).prepare()
