"""The code in the documentation runs and prints what it shows, and generated parts are up to date.

The ``python`` blocks of a page are one program, run in order in one namespace. With a comment ``<!-- needs: torch -->``
on the line before it, a block is skipped if that module is not installed. A ``text`` block is what the ``python``
block before it prints.
"""

import importlib
import importlib.util
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from unirnn.errors import MissingBackendError

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>[^>]+?) -->\n)?^```(?P<kind>python|text)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMMANDS = re.compile(r"## Develop.*?```sh\n(.*?)```", re.DOTALL)


def _load_make_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_tables = _load_make_tables()
PAGES = [p for p in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))) if "```python" in p.read_text("utf-8")]
PAGES.remove(make_tables.GUIDE)  # its code is in files, which test_new_backend.py runs


def program(page: str) -> tuple[str, str, list[str]]:
    """The program of a page, its expected output, and the missing modules for which blocks are skipped.

    Lines keep their numbers in the page, so that a traceback points there.
    """
    source, printed, missing, end, runs = "", "", [], 0, False
    for block in BLOCK.finditer(page):
        if block["kind"] == "text":
            printed += block["body"] if runs else ""
            continue
        absent = [name for name in re.findall(r"\w+", block["needs"] or "") if not importlib.util.find_spec(name)]
        missing += absent
        runs = not absent
        if runs:
            source += "\n" * page.count("\n", end, block.start("body")) + block["body"]
            end = block.end("body")
    return source, printed, missing


# warnings of torch about its own exporter and quantisation
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*are deprecated:UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # pages write files
    monkeypatch.setenv("KERAS_BACKEND", "torch")  # Keras' own default is TensorFlow
    source, printed, missing = program(page.read_text("utf-8"))
    if not source:
        pytest.skip(f"needs {', '.join(sorted(set(missing)))}")
    script = tmp_path / f"{page.stem}.md.py"  # MindSpore compiles a function from its source file
    script.write_text(source, "utf-8")
    runpy.run_path(str(script))
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("page", make_tables.names_pages(), ids=lambda page: page.name)
def test_a_names_page_is_up_to_date(page: Path) -> None:
    assert page.read_text("utf-8") == make_tables.names_pages()[page], "run python docs/make_tables.py"


def test_the_tables_of_figures_are_up_to_date() -> None:
    page = make_tables.BENCHMARK.read_text("utf-8")
    made = make_tables.with_table(page, "figures", make_tables.figures_tables())
    assert page == make_tables.with_table(made, "bars", make_tables.bars_table()), "run python docs/make_tables.py"
    page = make_tables.HOW_FAST.read_text("utf-8")
    assert page == make_tables.with_table(page, "machine", make_tables.machine()), "run python docs/make_tables.py"


def test_the_guide_shows_the_files_of_a_new_backend() -> None:
    assert make_tables.GUIDE.read_text("utf-8") == make_tables.guide(), "run python docs/make_tables.py"


@pytest.mark.parametrize(
    ("page", "name", "make"),
    [
        (make_tables.BACKENDS, "support", make_tables.support_list),
        (make_tables.MODELS, "layers", make_tables.layers_tables),
        (make_tables.TESTING, "tolerances", make_tables.tolerances_table),
    ],
    ids=["backends", "layers", "tolerances"],
)
def test_a_table_that_describes_backends_is_up_to_date(page: Path, name: str, make: Callable[[], str]) -> None:
    try:
        table = make()
    except MissingBackendError as error:
        pytest.skip(f"the table describes several backends: {error}")
    text = page.read_text("utf-8")
    assert text == make_tables.with_table(text, name, table), "run python docs/make_tables.py"


def test_ci_runs_the_commands_of_the_readme() -> None:
    found = COMMANDS.search((ROOT / "README.md").read_text("utf-8"))
    assert found is not None
    commands = found[1].splitlines()
    assert len(commands) == 3
    assert set(commands) <= set((ROOT / ".ci" / "run").read_text("utf-8").splitlines())


def test_the_weights_of_the_demo_give_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples" / "japanese_vowels")
    data, weights = map(importlib.import_module, ("data", "weights"))
    trained, expected = weights.load()
    _, test = data.load()
    logits = trained.build("numpy")(test.features, seq_length=test.lengths)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
