"""List the folders of the packages, what each imports, and the sizes of what they hold.

    python -m tests.support.architecture [folder of a checkout]

Prints a table of folders (files, lines of code and of docstrings, long functions and classes,
imports within functions, `noqa`, `Any`), the arrows between folders with the number of imports, and
the flags that are defined more than once.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator

PACKAGES = ("bert_tf", "data_prep", "experiments")
FUNCTION_LINES, CLASS_LINES, PARAMETERS = 60, 300, 8
_SIZES = (
    "files",
    "code",
    "docstrings",
    "functions",
    "classes",
    "parameters",
    "lazy",
    "noqa",
    "any",
)
_DEFINES_FLAG = re.compile(r"(DEFINE_\w+|text|integer|number|choice|boolean)$")


@dataclasses.dataclass
class Module:
    """A source file.

    Attributes:
        name: dotted.
        sizes: figures of the table, by `_SIZES`.
        imports: dotted names of own modules or packages that it imports, once for each import.
        flags: names of the flags that it defines by a call of absl.
    """

    name: str
    sizes: dict[str, int]
    imports: list[str]
    flags: list[str]

    @property
    def folder(self) -> str:
        """Package and the folder or file directly in it: `bert_tf.models`, `bert_tf.config`."""
        return ".".join(self.name.split(".")[:2])


def read_modules(root: pathlib.Path) -> list[Module]:
    """Read all source files of the packages of a checkout."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    names = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
    return [_read_module(name, path, set(names)) for name, path in names.items()]


def _read_module(name: str, path: pathlib.Path, known: set[str]) -> Module:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    docstrings = set(_docstring_lines(tree))
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type
        not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        for line in range(token.start[0], token.end[0] + 1)
    } - docstrings
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    own = list(_own_imports(tree, known))
    sizes = {
        "files": 1,
        "code": len(code),
        "docstrings": len(docstrings),
        "functions": sum(_length(node, docstrings) > FUNCTION_LINES for node in functions),
        "classes": sum(_length(node, set()) > CLASS_LINES for node in classes),
        "parameters": sum(_num_parameters(node) > PARAMETERS for node in functions),
        "lazy": sum(not at_top for _, at_top in own),
        "noqa": text.count("# noqa"),
        "any": sum(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(tree)),
    }
    return Module(name, sizes, [module for module, _ in own], list(_flags(tree)))


def _docstring_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield from range(first.lineno, (first.end_lineno or first.lineno) + 1)


def _length(node: ast.AST, leave_out: set[int]) -> int:
    lines = range(node.lineno, node.end_lineno + 1)  # pyright: ignore[reportAttributeAccessIssue]
    return sum(line not in leave_out for line in lines)


def _num_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def _own_imports(tree: ast.Module, known: set[str]) -> Iterator[tuple[str, bool]]:
    """Yield the module of each import of an own name, and whether it is at the top of the file."""
    within = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                packages = {f"{full}.__init__", f"{node.module}.__init__"}
                if full in known or node.module in known or packages & known:
                    target = full if full in known or f"{full}.__init__" in known else node.module
                    yield target, node not in within


def _flags(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if _DEFINES_FLAG.fullmatch(called) and isinstance(node.args[0].value, str):
                yield node.args[0].value


def arrows(modules: list[Module]) -> dict[tuple[str, str], int]:
    """Count the imports from folder to folder."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for module in modules:
        for target in module.imports:
            other = ".".join(target.split(".")[:2])
            if other != module.folder and "." in other:
                counts[module.folder, other] += 1
    return dict(counts)


def main(arguments: list[str]) -> None:
    """Print the tables."""
    root = pathlib.Path(arguments[0] if arguments else __file__).resolve()
    root = root if arguments else root.parents[2]
    modules = read_modules(root)
    table: dict[str, collections.Counter[str]] = {}
    for module in modules:
        package, _, rest = module.folder.partition(".")
        is_file = module.name.count(".") == 1
        row = f"{package}/" if is_file else f"{package}/{rest}/"
        table.setdefault(row, collections.Counter()).update(module.sizes)
    print(f"{'folder':32}" + "".join(f"{name:>11}" for name in _SIZES))
    for row, sizes in [*sorted(table.items()), ("all", sum(table.values(), collections.Counter()))]:
        print(f"{row:32}" + "".join(f"{sizes[name]:>11,}" for name in _SIZES))
    print("\narrows (number of imports)")
    drawn = arrows(modules)
    for folder in sorted({source for source, _ in drawn}):
        targets = sorted((t, n) for (source, t), n in drawn.items() if source == folder)
        print(f"  {folder} -> " + ", ".join(f"{target} ({count})" for target, count in targets))
    defined = collections.Counter(flag for module in modules for flag in module.flags)
    twice = sorted(((n, flag) for flag, n in defined.items() if n > 1), reverse=True)
    print(f"\nflags defined more than once: {len(twice)}")
    print("  " + ", ".join(f"{flag} ({count})" for count, flag in twice))


if __name__ == "__main__":
    main(sys.argv[1:])
