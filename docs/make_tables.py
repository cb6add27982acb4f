"""Make the documentation's tables from the code.

``python docs/make_tables.py`` writes the mapping pages ``docs/names/{rnn,gru,lstm}[.zh].md`` from
`unirnn.specs.arguments.ARGUMENTS`, the support table of ``README.md`` from `unirnn.explain` and the backends, and the
figures of ``docs/benchmark.md`` from what ``unirnn bench`` has left in ``benchmarks/figures``. With ``--check`` it
writes nothing, and the exit status is 1 if a page is out of date.

The support table needs every backend of unirnn installed; without one it is left as it is.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from unirnn import GRUSpec, LSTMSpec, RNNSpec, Spec, explain, registry
from unirnn.devices import DTYPES
from unirnn.errors import MissingBackendError
from unirnn.specs import arguments as names

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BENCHMARK = ROOT / "docs" / "contributing" / "benchmark.md"
FIGURES = ROOT / "benchmarks" / "figures"

# ---- the mapping pages ---------------------------------------------------------------------------


class Language(NamedTuple):
    """The words of a mapping page around the table's own."""

    code: str
    suffix: str
    intro: str
    positional: str
    constructor: str
    build: str
    call: str
    result: str
    difference: str
    same: str


LANGUAGES = (
    Language(
        "en",
        "",
        "What `torch.nn.{cell}`, `mindspore.nn.{cell}` and `unirnn.{cell}Spec` call the same thing. unirnn understands "
        "every name of an argument; two of one row in one call are a `TypeError` that names both.",
        "`input_size`, `hidden_size` and `num_layers` are taken by position or by name, the others by name only. "
        "The last of PyTorch's and MindSpore's own are arguments of `build`.",
        "Constructor",
        "Build",
        "Call",
        "Result",
        "difference",
        "the same",
    ),
    Language(
        "zh",
        ".zh",
        "`torch.nn.{cell}`、`mindspore.nn.{cell}` 与 `unirnn.{cell}Spec` 的名称对照。参数的每个名称 unirnn "
        "都能识别；在一次调用中同时使用同一行的两个名称会引发 `TypeError`，并指出这两个名称。",
        "`input_size`、`hidden_size` 和 `num_layers` 可按位置或按名称传入，其余参数只能按名称传入。"
        "两个框架构造函数的最后几个参数在此属于 `build`。",
        "构造函数",
        "构建",
        "调用",
        "返回值",
        "差异",
        "相同",
    ),
)


def names_page(cell: str, language: Language) -> str:
    """The mapping page of one cell in one language, as Markdown."""
    lines = [
        "<!-- Made by docs/make_tables.py from unirnn/names.py. -->",
        "",
        f"# {cell}",
        "",
        language.intro.format(cell=cell),
    ]
    for place, title, note in (
        ("constructor", language.constructor, language.positional),
        ("build", language.build, '`spec.build(backend, device=None, dtype="float32", seed=None)`'),
        ("call", language.call, "`module(input, hx=None, seq_length=None)`"),
        ("result", language.result, ""),
    ):
        rows = []
        for row in names.arguments(cell, place):  # type: ignore[arg-type]
            spelled = [f"`{name}`" if name else "—" for name in (row.torch, row.mindspore, row.name)]
            difference = row.difference if language.code == "en" else row.difference_zh
            rows.append([*spelled, difference or language.same])
        lines += ["", f"## {title}", *(["", note] if note else []), ""]
        lines += _table(["PyTorch", "MindSpore", "unirnn", language.difference], rows)
    return "\n".join(lines) + "\n"


def names_pages() -> dict[Path, str]:
    """Every mapping page, by its path."""
    return {
        ROOT / "docs" / "names" / f"{cell.lower()}{language.suffix}.md": names_page(cell, language)
        for cell in ("RNN", "GRU", "LSTM")
        for language in LANGUAGES
    }


# ---- the support table ---------------------------------------------------------------------------

PROBES: tuple[Spec, ...] = (
    RNNSpec(8, 24),
    GRUSpec(8, 24),
    GRUSpec(8, 24, reset_after=False),
    LSTMSpec(8, 24),
    LSTMSpec(8, 24, proj_size=8),
)
"""The specs whose limits the table lists: one of each cell and variant, with a hidden size that is no multiple of 16,
and a projection."""

OPTIONS: dict[str, dict[str, Any]] = {"array_api": {"namespace": numpy}}
"""What a backend's build needs besides."""


def support_table() -> str:
    """What each backend of unirnn builds, and where, as Markdown.

    Raises
    ------
    MissingBackendError
        If a backend's framework is not installed.
    """
    rows = []
    for entry in sorted(metadata.distribution("unirnn").entry_points.select(group=registry.GROUP)):
        room = registry.load(entry.name)
        built = f"`{_native_name(PROBES[0].build(entry.name, **OPTIONS.get(entry.name, {})))}`"
        gradients = "yes" if room.differentiable else "see limits"
        # Devices of which the same is true share a row.
        devices: dict[tuple[str, str], list[str]] = {}
        for device in ("cpu", "gpu", "ascend"):
            dtypes = [d for d in DTYPES if any(explain(spec, entry.name, device, dtype=d).builds for spec in PROBES)]
            if dtypes:
                limits = _limits(entry.name, device, dtypes)
                devices.setdefault((", ".join(dtypes), "<br>".join(limits) or "none"), []).append(device)
        for (dtypes_text, limits_text), where in devices.items():
            rows.append([f"`{entry.name}`", built, ", ".join(where), dtypes_text, gradients, limits_text])
    return "\n".join(
        [
            *_table(["backend", "builds", "devices", "dtypes", "gradients", "limits"], rows),
            "",
            "The limits are what `unirnn.explain` says of " + ", ".join(f"`{spec}`" for spec in PROBES) + "; "
            "*can't* is refused by `build`, *differs* is not.",
        ]
    )


def _limits(backend: str, device: str, dtypes: Iterable[str]) -> list[str]:
    found = (limit for dtype in dtypes for spec in PROBES for limit in explain(spec, backend, device, dtype=dtype))
    return list(dict.fromkeys(f"*{kind}*{text}" for kind, text in (_split(str(limit)) for limit in found)))


def _split(text: str) -> tuple[str, str]:
    kind, colon, rest = text.partition(":")
    return kind, colon + rest


def _native_name(module: Any) -> str:
    """The framework's class that a module is, or else the module's own, by the shortest name that imports it."""
    kinds = type(module).__mro__[:-1]
    room = _package(kinds[0])
    kind = next((kind for kind in kinds if _package(kind) != room), kinds[0])
    parts = kind.__module__.split(".")
    for length in range(1, len(parts)):
        path = ".".join(parts[:length])
        if getattr(importlib.import_module(path), kind.__name__, None) is kind:
            return f"{path}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__name__}"


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


# ---- the figures of the benchmark ----------------------------------------------------------------


def figures_tables() -> str:
    """A table for each report."""
    reports = (json.loads(file.read_text("utf-8")) for file in sorted(FIGURES.glob("*.json")))
    return "\n\n".join(_times(report) if "rows" in report else _overheads(report) for report in reports)


def _times(report: dict[str, Any]) -> str:
    """Ours beside PyTorch's dense native layer, forward and with backward, as Markdown."""
    sizes = list(dict.fromkeys(row["size"] for row in report["rows"]))
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in report["rows"]:
        stack = f", {row['num_layers']} layers" * (row["num_layers"] > 1) + ", bidirectional" * row["bidirectional"]
        key = (row["backend"], row["mode"], row["cell"] + stack, row["lengths"])
        ratio = row["ratios"].get("torch")
        found.setdefault(key, {}).setdefault(row["size"], []).append("-" if ratio is None else f"{ratio:.2f}")
    rows = [[*key, *(" / ".join(of_size.get(size, ["-"])) for size in sizes)] for key, of_size in found.items()]
    return _measured(report, ["backend", "mode", "cell", "lengths", *sizes], rows)


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
    return "\n".join([f"`{report['command']}`, {', '.join(where)}:", "", *_table(columns, rows)])


# ---- all -----------------------------------------------------------------------------------------


def with_table(page: str, name: str, table: str) -> str:
    """The text of a page with a table between the markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> int:
    """Write the pages, or with ``--check`` name those that are out of date."""
    parser = argparse.ArgumentParser(description="Make the documentation's tables from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check

    pages = names_pages()
    pages[BENCHMARK] = with_table(BENCHMARK.read_text("utf-8"), "figures", figures_tables())
    try:
        pages[README] = with_table(README.read_text("utf-8"), "support", support_table())
    except MissingBackendError as error:
        print(f"README.md is left as it is: {error}", file=sys.stderr)
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages[path], "utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
