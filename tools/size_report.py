"""Prints how large the code is: lines per folder, and the files and functions that have grown long."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LONGEST_FILE = 400
LONGEST_FUNCTION = 60


def report(root: Path) -> Iterator[str]:
    """The lines of the report for a repository."""
    files = {path: path.read_text(encoding="utf-8") for path in _python_files(root)}
    yield from _lines_per_folder(root, files)
    yield from _long_parts(root, files)


def _python_files(root: Path) -> list[Path]:
    folders = (root / name for name in ("src", "tests", "tools", "bench"))
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def _lines_per_folder(root: Path, files: dict[Path, str]) -> Iterator[str]:
    counts: Counter[str] = Counter()
    for path, text in files.items():
        counts[str(path.parent.relative_to(root))] += _num_lines(text)
    for folder, count in sorted(counts.items()):
        yield f"{count:7,}  {folder}"
    yield f"{sum(counts.values()):7,}  in all"


def _long_parts(root: Path, files: dict[Path, str]) -> Iterator[str]:
    for path, text in files.items():
        place = path.relative_to(root)
        if place.parts[0] != "src":
            continue
        if _num_lines(text) > LONGEST_FILE:
            yield f"{place}: {_num_lines(text)} lines (more than {LONGEST_FILE})"
        for function in _functions(text):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > LONGEST_FUNCTION:
                name = f"{place}:{function.lineno}: {function.name}"
                yield f"{name}: {length} lines (more than {LONGEST_FUNCTION})"


def _functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _num_lines(text: str) -> int:
    return len(text.splitlines())


if __name__ == "__main__":
    for line in report(Path(__file__).resolve().parent.parent):
        print(line)
