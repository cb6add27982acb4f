"""In the examples, a model is written once: only the training loops depend on a framework."""

import ast
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DEFINITIONS = [
    "japanese_vowels/model.py",
    "streaming/language_model.py",
    "weather/forecaster.py",
    "letters_to_sounds/pronouncer.py",
]
LOOPS = {
    "japanese_vowels": "{}_loop.py",
    "streaming": "learn_{}.py",
    "weather": "fit_{}.py",
    "letters_to_sounds": "teach_{}.py",
}


def imported(path: Path) -> set[str]:
    """The packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_imports_only_unirnn(name: str) -> None:
    assert imported(EXAMPLES / name) <= {"unirnn", "typing"}


@pytest.mark.parametrize(("folder", "loop"), LOOPS.items())
def test_only_the_training_loop_imports_a_framework(folder: str, loop: str) -> None:
    frameworks = {"torch", "mindspore", "onnxruntime"}
    files = {path.name: imported(path) & frameworks for path in (EXAMPLES / folder).glob("*.py")}
    expected = {loop.format(name): {name} for name in ("torch", "mindspore")}
    assert {name: found for name, found in files.items() if found} == expected


def lines_that_count(path: Path) -> int:
    """The lines of a file without those that are blank, a comment or a docstring."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.stmt, ast.expr))]
    return len({line for node in nodes for line in (node.lineno, node.end_lineno)})


@pytest.mark.parametrize(("name", "most"), [("src/gestures.py", 10), ("noxfile.py", 10), ("tests/test_model.py", 12)])
def test_the_matrix_is_short(name: str, most: int) -> None:
    assert lines_that_count(EXAMPLES / "matrix" / name) <= most


def test_the_matrix_needs_no_fixtures_of_its_own() -> None:
    assert not list((EXAMPLES / "matrix").rglob("conftest.py"))
