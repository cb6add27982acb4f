"""Make the parts of the documentation that come from the code.

``python docs/make_tables.py`` writes the pages ``docs/names/{rnn,gru,lstm}[.zh].md`` from
`unirnn.specs.arguments.ARGUMENTS`, the list of backends in ``docs/backends.md`` from `unirnn.explain`, the tables of
layers in ``docs/models.md`` from their specs and what is built from them, the code in ``docs/writing-a-backend.md``
from the files that ``unirnn new-backend`` writes, and the tables of figures from what ``nox -s bench`` has written to
``benchmarks/figures``. With ``--check`` it writes nothing, and the exit status is 1 if a page is out of date.

The list of backends needs every backend installed, and the tables of layers need PyTorch and MindSpore; without them
they are left as they are.
"""

import argparse
import importlib
import inspect
import json
import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    GRUSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    Model,
    NormalizeSpec,
    PoolSpec,
    RNNSpec,
    Sequential,
    Spec,
    SumDirectionsSpec,
    explain,
    registry,
)
from unirnn.devices import DTYPES
from unirnn.errors import MissingBackendError
from unirnn.specs import arguments as names
from unirnn.testing.tolerances import TOLERANCES

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ROOT / "docs" / "backends.md"
MODELS = ROOT / "docs" / "models.md"
TESTING = ROOT / "docs" / "test-your-model.md"
BENCHMARK = ROOT / "docs" / "contributing" / "benchmark.md"
GUIDE = ROOT / "docs" / "writing-a-backend.md"
HOW_FAST = ROOT / "docs" / "how-fast.md"
FIGURES = ROOT / "benchmarks" / "figures"
TEMPLATE = ROOT / "unirnn" / "cli" / "unirnn-loop"
BARS = ROOT / "benchmarks" / "bars.py"

# ---- the pages of names ----------------------------------------------------------------------------


class Language(NamedTuple):
    """The words of a page of names."""

    code: str
    suffix: str
    title: str
    intro: str
    positional: str
    constructor: str
    build: str
    call: str
    result: str
    item: str
    named: str
    missing: str
    same: str
    same_name: str
    comma: str
    stop: str


LANGUAGES = (
    Language(
        "en",
        "",
        "{cell}: argument names",
        "What `torch.nn.{cell}`, `mindspore.nn.{cell}` and `unirnn.{cell}Spec` call the same thing. unirnn understands "
        "all of these names. Two names of one argument in one call are a `TypeError` that shows both.",
        "`input_size`, `hidden_size` and `num_layers` may be given by position or by name, the others only by name.",
        "Constructor",
        "Build",
        "Call",
        "Result",
        "- **`{name}`**: {text}",
        "`{name}` in {framework}",
        "not in {framework}",
        "the same in both",
        "the same name in both",
        ", ",
        ". ",
    ),
    Language(
        "zh",
        ".zh",
        "{cell}：参数名称",
        "同一参数在 `torch.nn.{cell}`、`mindspore.nn.{cell}` 和 `unirnn.{cell}Spec` 中的名称。"
        "unirnn 能识别所有这些名称；如果在一次调用中用两个名称传入同一个参数，会引发 `TypeError`，并指出这两个名称。",
        "`input_size`、`hidden_size` 和 `num_layers` 可按位置或按名称传入，其余参数只能按名称传入。",
        "构造函数",
        "构建",
        "调用",
        "返回值",
        "- **`{name}`**：{text}",
        "{framework} 为 `{name}`",
        "{framework} 无此参数",
        "两个框架相同",
        "两个框架名称相同",
        "，",
        "。",
    ),
)


def names_page(cell: str, language: Language) -> str:
    """The page of one cell in one language, as Markdown."""
    intro = language.intro.format(cell=cell)
    lines = [
        "<!-- Made by docs/make_tables.py from unirnn/specs/arguments.py. -->",
        "",
        f"# {language.title.format(cell=cell)}",
        "",
        _wrapped(intro) if language.code == "en" else intro,
    ]
    for place, title, note in (
        ("constructor", language.constructor, language.positional),
        ("build", language.build, '`spec.build(backend, device=None, dtype="float32", seed=None)`'),
        ("call", language.call, "`module(input, hx=None, seq_length=None, resets=None)`"),
        ("result", language.result, ""),
    ):
        lines += ["", f"## {title}", *(["", note] if note else []), ""]
        lines += [_argument(row, language) for row in names.arguments(cell, place)]  # type: ignore[arg-type]
    return "\n".join(lines) + "\n"


def _argument(row: names.Argument, language: Language) -> str:
    """An argument as an item of a list."""
    difference = row.difference if language.code == "en" else row.difference_zh
    parts = []
    if row.torch == row.mindspore == row.name:
        parts.append(language.same_name if difference else language.same)
    elif row.torch or row.mindspore:
        spelled = (("PyTorch", row.torch), ("MindSpore", row.mindspore))
        forms = [(language.named if name else language.missing, framework, name) for framework, name in spelled]
        parts.append(language.comma.join(form.format(framework=where, name=name) for form, where, name in forms))
    if difference:
        parts.append(difference[0].upper() + difference[1:])
    item = language.item.format(name=row.name, text=language.stop.join(parts)) + language.stop.strip()
    return _wrapped(item) if language.code == "en" else item  # Chinese has no spaces to part it at


def names_pages() -> dict[Path, str]:
    """Every page of names, by its path."""
    return {
        ROOT / "docs" / "names" / f"{cell.lower()}{language.suffix}.md": names_page(cell, language)
        for cell in ("RNN", "GRU", "LSTM")
        for language in LANGUAGES
    }


# ---- the list of backends --------------------------------------------------------------------------

LAYERS: tuple[Spec, ...] = (
    EmbeddingSpec(5000, 64),
    RNNSpec(8, 16),
    GRUSpec(8, 16),
    LSTMSpec(8, 16),
    LSTMSpec(8, 16, bidirectional=True),
    SumDirectionsSpec(),
    LinearSpec(3, 4),
    ActivationSpec("relu"),
    DropoutSpec(0.2),
    LayerNormSpec(4),
    BatchNormSpec(4),
    NormalizeSpec(),
    Conv1dSpec(3, 4, 5),
    Conv1dSpec(3, 4, 5, padding="same"),
    Conv1dSpec(3, 4, 5, padding="causal"),
    PoolSpec("mean"),
)
"""The layers that the tables show: one of each kind, and those variants that treat steps in another way."""

PROBES: tuple[Spec, ...] = (
    RNNSpec(8, 24),
    GRUSpec(8, 24),
    GRUSpec(8, 24, reset_after=False),
    LSTMSpec(8, 24),
    LSTMSpec(8, 24, proj_size=8),
)
"""The recurrent layers whose limits the list shows: one of each cell and variant, with a hidden size that is not a
multiple of 16, and a projection."""


class Definition(Model):
    """The model from code whose limits the list shows."""

    def __init__(self) -> None:
        self.head = LinearSpec(3, 4)

    def forward(self, xp: Any, x: Any, /) -> Any:
        """A linear map of x."""
        return self.head(x)


MODEL = Sequential(LinearSpec(3, 4))
"""A model, whose class the list shows."""

OPTIONS: dict[str, dict[str, Any]] = {"array_api": {"namespace": numpy}}
"""Further arguments that a backend's build needs."""

GRADIENTS = {1: "yes", 2: "yes, and second derivatives"}


def support_list() -> str:
    """What each backend of unirnn builds, where, and its limits, as Markdown.

    Raises
    ------
    MissingBackendError
        If a backend's framework is not installed.
    """
    entries = metadata.distribution("unirnn").entry_points.select(group=registry.GROUP)
    parts = ["\n".join(_backend(entry.name)) for entry in sorted(entries)]
    probes = ", ".join(f"`{spec}`" for spec in PROBES)
    return "\n\n".join(
        [
            *parts,
            _wrapped(
                f"The limits are those that `unirnn.explain` reports for {probes}, for "
                "[each layer of models](models.md#the-layers), and for a model from code."
            ),
        ]
    )


def _backend(name: str) -> list[str]:
    """The lines about one backend."""
    built, model = (_native_name(spec.build(name, **OPTIONS.get(name, {}))) for spec in (PROBES[0], MODEL))
    shown = (*PROBES, *LAYERS, MODEL, Definition())
    dtypes: dict[str, list[str]] = {}  # by device
    limits: dict[str, list[str]] = {}  # the devices, by the limit's text
    for device in ("cpu", "gpu", "ascend"):
        usable = [d for d in DTYPES if any(explain(spec, name, device, dtype=d).builds for spec in PROBES)]
        if usable:
            dtypes[device] = usable
        found = (limit for dtype in usable for spec in shown for limit in explain(spec, name, device, dtype=dtype))
        for text in dict.fromkeys(map(str, found)):
            limits.setdefault(text, []).append(device)
    of_models = "" if model == built else f", and for a model a `{model}`"
    lines = [f"### {name}", "", _wrapped(f'`build("{name}")` returns a `{built}`{of_models}.'), ""]
    lines += [f"- Dtypes on {where}: {usable}" for usable, where in _grouped(dtypes).items()]
    support = registry.load(name).support
    lines += [f"- Gradients: {GRADIENTS[support.derivatives]}"] if support.derivatives else []
    lines += [f"- Export: {_series(support.exports)}"] if support.exports else []
    for text, devices in limits.items():
        kind, _, rest = text.partition(": ")
        where = "" if devices == list(dtypes) else f" on {_series(devices)}"
        lines.append(_wrapped(f"- *{kind.capitalize()}*{where}: {rest}"))
    return lines


def _grouped(dtypes: dict[str, list[str]]) -> dict[str, str]:
    """The devices that have the same dtypes, by these dtypes."""
    groups: dict[str, list[str]] = {}
    for device, usable in dtypes.items():
        groups.setdefault(", ".join(usable), []).append(device)
    return {usable: _series(devices) for usable, devices in groups.items()}


def _series(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _native_name(module: Any) -> str:
    """The framework's class that a module is, or else the module's own, by the shortest name that imports it."""
    kinds = type(module).__mro__[:-1]
    own = _package(kinds[0])
    others = (own, "unirnn", "abc", "pybind11_builtins")
    kind = next((kind for kind in kinds if _package(kind) not in others), kinds[0])
    parts = kind.__module__.split(".")
    for length in range(1, len(parts)):
        path = ".".join(parts[:length])
        if getattr(importlib.import_module(path), kind.__name__, None) is kind:
            return f"{path}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__name__}"


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


# ---- the tables of layers ------------------------------------------------------------------------


def layers_tables() -> str:
    """What each layer computes, and how it is built, as Markdown.

    Raises
    ------
    MissingBackendError
        If PyTorch or MindSpore is not installed.
    """
    kinds = {type(spec): spec for spec in reversed(LAYERS)}
    computed = [[f"`{kind.__name__}`", _sentence(kind), _weights(spec)] for kind, spec in reversed(kinds.items())]
    built = [
        [
            f"`{spec}`",
            "ends the steps" if spec.ends_steps else "changes them" if spec.length_rules else "keeps them",
            "yes" if spec.can_stream else "no",
            *(_child_name(backend, spec) for backend in ("torch", "mindspore")),
        ]
        for spec in LAYERS
    ]
    tables = (
        _table(["spec", "what it computes", "weights"], computed),
        _table(["for example", "lengths", "can stream", "in PyTorch", "in MindSpore"], built),
    )
    return "\n\n".join("\n".join(table) for table in tables)


def _sentence(kind: type[Spec]) -> str:
    """The first paragraph of a docstring, as Markdown."""
    first, _, _ = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    return first.replace("\n", " ").replace("``", "`")


def _weights(spec: Spec) -> str:
    """The names of the weights of a layer."""
    return ", ".join(f"`{name}`" for name in spec.weight_shapes())


def _child_name(backend: str, spec: Spec) -> str:
    """The framework's class that a layer of a model is, if it has one."""
    name = _native_name(Sequential(layer=spec).build(backend).layer)
    return {"torch.nn.Module": "a module of `unirnn`", "mindspore.nn.Cell": "a cell of `unirnn`"}.get(name, f"`{name}`")


# ---- the code of a backend -----------------------------------------------------------------------


def tolerances_table() -> str:
    """By how much numbers may differ in a test, by dtype."""
    by_size = sorted(TOLERANCES.items(), key=lambda item: item[1])
    return "\n".join(_table(["dtype", "within tolerance on a CPU"], [[name, f"{size:.1e}"] for name, size in by_size]))


def guide() -> str:
    """The guide to writing a backend, with each file that `unirnn new-backend loop` writes, as Markdown."""
    page = GUIDE.read_text("utf-8")
    for suffix, language in ((".py", "python"), (".toml", "toml")):
        for path in TEMPLATE.rglob(f"*{suffix}"):
            code = f"```{language}\n{path.read_text('utf-8')}```"
            page = with_table(page, path.relative_to(TEMPLATE).as_posix(), code)
    return page


# ---- the figures of the benchmark ----------------------------------------------------------------


def figures_tables() -> str:
    """A table for each report."""
    reports = (json.loads(file.read_text("utf-8")) for file in sorted(FIGURES.glob("*.json")))
    return "\n\n".join(_times(report) if "rows" in report else _overheads(report) for report in reports)


def _times(report: dict[str, Any]) -> str:
    """Ours beside PyTorch's dense layer, the share of the peak, and ours beside ONNX Runtime, as Markdown."""
    rows = report["rows"]
    dense = [row for row in rows if row["lengths"] == "dense"]
    models = [row for row in rows if row["size"] == "model" and row["lengths"] != "dense" and "usual" in row["ratios"]]
    steps = [row for row in dense if row["size"].startswith("step")]
    resets = [row for row in rows if row["lengths"] == "resets"]
    compared = [row for row in dense if not row["backward"] and row["backend"] != "onnxruntime"]
    parts = [_measured(report, *_by_size(rows, lambda row: row["ratios"].get("torch"), ".2f"))]
    for title, chosen, value, format_ in (
        ("The share of the processor's peak", dense, lambda row: row.get("peak"), ".0%"),
        ("Ours and ONNX Runtime's session", compared, lambda row: row["ratios"].get("onnxruntime"), ".2f"),
        ("Ours and the framework's own cell", steps, lambda row: row["ratios"].get("usual"), ".2f"),
        ("Ours and a model written with the framework's layers", models, lambda row: row["ratios"].get("usual"), ".2f"),
        ("Ours and a loop over single steps", resets, lambda row: row["ratios"].get("usual"), ".2f"),
        ("Ours with resets and without", resets, lambda row: row["ratios"].get("dense"), ".2f"),
    ):
        if any(value(row) is not None for row in chosen):
            parts.append("\n".join([f"{title}:", "", *_table(*_by_size(chosen, value, format_))]))
    return "\n\n".join(parts)


def _by_size(
    rows: Iterable[dict[str, Any]], value: Callable[[dict[str, Any]], float | None], format_: str
) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table with a column for each size: a value forward and with backward."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    sizes: dict[str, None] = {}
    for row in rows:
        stack = f", {row['num_layers']} layers" * (row["num_layers"] > 1) + ", bidirectional" * row["bidirectional"]
        key = (row["backend"], row["mode"], row["cell"] + stack, row["lengths"])
        of_row = value(row)
        sizes[row["size"]] = None
        found.setdefault(key, {}).setdefault(row["size"], []).append("-" if of_row is None else f"{of_row:{format_}}")
    cells = [[*key, *(" / ".join(of_size.get(size, ["-"])) for size in sizes)] for key, of_size in found.items()]
    return ["backend", "mode", "cell", "lengths", *sizes], cells


def _overheads(report: dict[str, Any]) -> str:
    """What unirnn costs besides the computation, beside what it would cost without, as Markdown."""
    columns = ["part", "what", "ours", "other", "unit", "ratio"]
    rows = [
        [f"{row[name]:.4g}" if isinstance(row[name], float | int) else row[name] for name in columns]
        for row in report["overheads"]
    ]
    return _measured(report, columns, rows)


def _measured(report: dict[str, Any], columns: list[str], rows: list[list[str]]) -> str:
    """A table, below what measured it."""
    where = (report["date"][:10], report["cpu"], f"{report['cores']} cores", *report["versions"].values())
    return "\n".join([_wrapped(f"`{report['command']}`, {', '.join(where)}:"), "", *_table(columns, rows)])


def bars_table() -> str:
    """How many of the rows hold each group of bars, as Markdown."""
    names = runpy.run_path(str(BARS))
    rows: list[dict[str, Any]] = []
    for file in sorted(FIGURES.glob("*.json")):
        report = json.loads(file.read_text("utf-8"))
        rows += [*report.get("rows", ()), *report.get("overheads", ())]
    rows = names["with_speed_ups"](rows)
    found: dict[str, list[bool]] = {}
    for bar in names["bars"]():
        found.setdefault(bar.title, []).extend(not bar.misses(value) for value, _ in bar.figures(rows))
    cells = [[title, f"{sum(held)} of {len(held)}" if held else "not measured"] for title, held in found.items()]
    return "\n".join(_table(["bars", "rows that hold them"], cells))


def machine() -> str:
    """What measured most pictures of the page for users, in a sentence."""
    reports = [json.loads((FIGURES / f"{name}.json").read_text("utf-8")) for name in ("threads1", "threads1-mindspore")]
    versions = [version.replace("+cpu", "") for report in reports for version in report["versions"].values()]
    return _wrapped(
        f"They were measured in float32 on one thread of this processor: {reports[0]['cpu']}, with {_series(versions)}."
    )


# ---- all -----------------------------------------------------------------------------------------


def with_table(page: str, name: str, table: str) -> str:
    """The text of a page with a table between the markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def _wrapped(text: str) -> str:
    """A paragraph, or an item of a list, in lines of at most 120 characters; short code and links are not parted."""
    whole = re.sub(r"`[^`]{,80}`|\[[^]]*\]\([^)]*\)", lambda part: part[0].replace(" ", "\0"), text)
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(whole, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> int:
    """Write the pages, or with ``--check`` name those that are out of date."""
    parser = argparse.ArgumentParser(description="Make the parts of the documentation that come from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check

    pages = names_pages()
    pages[BENCHMARK] = with_table(BENCHMARK.read_text("utf-8"), "figures", figures_tables())
    pages[BENCHMARK] = with_table(pages[BENCHMARK], "bars", bars_table())
    pages[GUIDE] = guide()
    pages[HOW_FAST] = with_table(HOW_FAST.read_text("utf-8"), "machine", machine())
    for page, name, make in (
        (BACKENDS, "support", support_list),
        (MODELS, "layers", layers_tables),
        (TESTING, "tolerances", tolerances_table),
    ):
        try:
            pages[page] = with_table(page.read_text("utf-8"), name, make())
        except MissingBackendError as error:
            print(f"{page.relative_to(ROOT)} is left as it is: {error}", file=sys.stderr)
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages[path], "utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
