"""Which module may import which, and what no module does.

`LAYERS` is the one source of the table in docs/architecture.md; the imports are read with
`ast`, those inside functions and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[1]
SOURCE: Final = ROOT / "src"
MAX_MODULE_LINES: Final = 400
MAX_BODY_LINES: Final = 40
MAX_INTERFACE_MEMBERS: Final = 5


class Layer(NamedTuple):
    """Modules of the package, named without `twotower.`, and what they may import of it."""

    modules: tuple[str, ...]
    may_import: tuple[str, ...]
    """Names of layers, or of single modules of another layer."""


def layer(modules: str, may_import: str) -> Layer:
    """Both lists, written with spaces between."""
    return Layer(tuple(modules.split()), tuple(may_import.split()))


LAYERS: Final[dict[str, Layer]] = {
    "errors": layer("errors progress failpoints durable", ""),
    "settings": layer("*.settings", "errors"),
    "metrics": layer("metrics", "errors"),
    "entities": layer(
        "data.schema data.ids data.features data.feature_fields data.feature_values data.user_state"
        " data.popularity data.events data.event_log data.example_log.manifest",
        "errors settings",
    ),
    "data": layer("data", "errors settings entities"),
    "index": layer("index", "errors index.settings"),
    "model": layer("model", "errors settings entities"),
    "checkpoint": layer("checkpoint", "errors settings entities data model"),
    "training": layer(
        "training", "errors settings entities data model checkpoint publishing.delta_rows"
    ),
    "generation": layer(
        "publishing.generation publishing.manifest publishing.store"
        " publishing.activation publishing.staging publishing.entities publishing.display"
        " publishing.delta publishing.delta_files publishing.delta_manifest publishing.delta_rows"
        " publishing.delta_writing publishing.retention"
        " publishing.item_register publishing.item_overlay publishing.listing publishing.checked",
        "errors settings entities",
    ),
    "encoding": layer(
        "publishing.encoding publishing.tower publishing.day_items",
        "errors settings entities generation",
    ),
    "publishing": layer(
        "publishing",
        "errors settings entities data model index metrics checkpoint generation encoding",
    ),
    "serving": layer("serving", "errors settings entities index metrics generation encoding"),
    "client": layer(
        "client",
        "errors entities generation serving.admin_messages serving.messages serving.problems"
        " serving.routes serving.status",
    ),
    "studies": layer(
        "evaluation baselines mining",
        "errors settings entities data model index metrics generation encoding",
    ),
    "config": layer("config overrides", "errors settings"),
    "loop": layer(
        "nightly increments increment_runs increment_stop replay runtime doctor loss_comparison",
        "errors settings entities data model index metrics checkpoint training generation"
        " encoding publishing serving studies config",
    ),
    "cli": layer("cli", "*"),
    "package": Layer(("",), ("*",)),
}

ENGINES: Final[dict[str, tuple[str, ...]]] = {
    "apscheduler": ("runtime.schedule",),
    "faiss": ("index.faiss",),
    "fastapi": ("serving.app",),
    "google_crc32c": ("data.tfrecord.frames",),
    "hnswlib": ("index.hnswlib",),
    "httpx": ("client",),
    "implicit": ("baselines",),
    "llvmlite": ("data.tfrecord.machine",),
    "numba": ("data.tfrecord.compiled", "data.tfrecord.machine"),
    "onnx": ("model.export",),
    "onnxruntime": ("publishing.tower",),
    "opentelemetry": ("serving.tracing",),
    "orjson": ("serving.answer_json",),
    "pandas": ("data",),
    "polars": ("data", "cli.import_"),
    "prometheus_client": (
        *("serving.metrics_page", "serving.project_metrics", "serving.collector_metrics"),
    ),
    "pyarrow": ("data",),
    "pymilvus": ("index.milvus_server",),
    "redis": ("serving.redis_profiles",),
    "rich": ("cli",),
    "safetensors": ("checkpoint", "training.resume", "training.increment.journal"),
    "scann": ("index.scann",),
    "scipy": ("baselines",),
    "starlette": ("serving.app",),
    "tenacity": ("client",),
    "threadpoolctl": ("baselines",),
    "torch": ("model", "training", "checkpoint", "publishing.trainer_vectors"),
    "typer": ("cli",),
    "uvicorn": ("serving.http_server", "serving.protocol", "serving.direct_protocol"),
    "xxhash": ("data", "publishing.delta_files"),
}
"""Where each third-party engine may be imported while the program runs."""

IMPURE: Final = {"datetime", "http", "io", "os", "pathlib", "random", "requests", "shutil"} | {
    *("socket", "subprocess", "tempfile", "time", "urllib")
}
"""Files, clocks and network: never in the mathematics of `model`."""

DRAWERS: Final = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}


class Import(NamedTuple):
    """One name that a module imports."""

    target: str
    is_type_only: bool


def module_name(path: Path) -> str:
    """`data.ids` for src/twotower/data/ids.py; the package itself is the empty string."""
    parts = list(path.relative_to(SOURCE / "twotower").with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


MODULES: Final = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    """The parsed source."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    """Everything that the module imports, wherever the statement stands."""
    type_only = {
        id(inner)
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    return tuple(
        Import(target, id(node) in type_only)
        for node in ast.walk(tree_of(module))
        for target in _targets(node)
    )


def _targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
        yield from (a.value for a in node.args if _is_text(a))  # type: ignore[attr-defined]


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def own_imports(module: str) -> Iterator[str]:
    """The modules of this package that `module` imports, without `twotower.`."""
    for target, _ in imports_of(module):
        if target == "twotower" or target.startswith("twotower."):
            name = target.removeprefix("twotower").removeprefix(".")
            yield name if name in MODULES else name.rpartition(".")[0]


def is_within(module: str, prefix: str) -> bool:
    """Whether `prefix` names the module or a package around it."""
    return module == prefix or module.startswith(prefix + ".")


def layer_of(module: str) -> str:
    """The layer whose pattern fits best: settings first, then the longest name."""
    if module.endswith(".settings"):
        return "settings"
    fitting = [
        (len(prefix), name)
        for name, row in LAYERS.items()
        for prefix in row.modules
        if is_within(module, prefix) or (prefix == "" and module in ("", "__main__"))
    ]
    assert fitting, f"module {module} belongs to no layer: add it to LAYERS"
    return max(fitting)[1]


def is_allowed(module: str, imported: str) -> bool:
    """Whether the table lets `module` import `imported`."""
    name = layer_of(module)
    allowed = (name, *LAYERS[name].may_import)
    return (
        "*" in allowed
        or layer_of(imported) in allowed
        or any(is_within(imported, entry) for entry in allowed)
        or (layer_of(imported) == "package" and imported == "")
    )


def test_every_import_follows_the_layers() -> None:
    wrong = [
        f"{module} ({layer_of(module)}) imports {imported} ({layer_of(imported)})"
        for module in MODULES
        for imported in own_imports(module)
        if not is_allowed(module, imported)
    ]
    assert wrong == []


def test_the_rules_refuse_what_they_should() -> None:
    assert not is_allowed("index.settings", "data.ids")
    for module, imported in [
        ("index", "data"),
        ("serving", "model"),
        ("serving", "publishing"),
        ("training", "publishing"),
        ("publishing.generation", "publishing.encoding"),
        ("metrics", "data"),
        ("model", "checkpoint"),
    ]:
        allowed = (layer_of(module), *LAYERS[layer_of(module)].may_import)
        assert layer_of(imported) not in allowed, f"{module} may import {imported}"


def test_layers_name_only_layers_above_them() -> None:
    names = list(LAYERS)
    upside_down = [
        f"{name} names {allowed}"
        for place, (name, row) in enumerate(LAYERS.items())
        for allowed in row.may_import
        if allowed in names and names.index(allowed) >= place
    ]
    assert upside_down == []


def test_engines_are_imported_in_their_own_files() -> None:
    wrong = [
        f"{module} imports {target}"
        for module in MODULES
        for target, is_type_only in imports_of(module)
        for engine in [target.split(".")[0]]
        if engine in ENGINES and not is_type_only
        if not any(is_within(module, place) for place in ENGINES[engine])
    ]
    assert wrong == []


def test_the_model_knows_no_files_clocks_or_network() -> None:
    wrong = [
        f"{module} imports {target}"
        for module in MODULES
        if layer_of(module) == "model"
        for target, _ in imports_of(module)
        if target.split(".")[0] in IMPURE
    ]
    assert wrong == []


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a module with the text of what is called."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_is_unpickled_or_printed() -> None:
    unsafe = re.compile(r"(^|\.)(pickle|joblib|marshal|dill)\.|^(torch\.load|yaml\.load|print)$")
    wrong = [
        f"{module}: {name}("
        for module in MODULES
        for name, _ in calls(module)
        if unsafe.search(name)
    ]
    wrong += [
        f"{module}: {name}(allow_pickle=…)"
        for module in MODULES
        for name, call in calls(module)
        for keyword in call.keywords
        if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
    ]
    wrong += [
        f"{module} imports {target}"
        for module in MODULES
        for target, _ in imports_of(module)
        if target.split(".")[0] in {"pickle", "joblib", "marshal", "dill", "cloudpickle"}
    ]
    assert wrong == []


def test_there_are_no_drawers() -> None:
    assert [name for name in MODULES if DRAWERS & set(name.split("."))] == []


def test_modules_are_short() -> None:
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()
    }
    assert {name: n for name, n in lengths.items() if n > MAX_MODULE_LINES} == {}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    documented = ast.get_docstring(function) is not None
    body = function.body[1:] if documented else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_short() -> None:
    long = [
        f"{module}.{node.name}: {length} lines"
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for length in [body_lines(node)]
        if length > MAX_BODY_LINES
    ]
    assert long == []


def test_interfaces_are_small() -> None:
    wide = [
        f"{module}.{node.name}"
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ClassDef)
        if sum("@abstractmethod" in ast.unparse(part) for part in node.body) > MAX_INTERFACE_MEMBERS
    ]
    assert wide == []


def public_names(module: str) -> list[str] | None:
    """The list `__all__` of a module."""
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(ast.unparse(target) == "__all__" for target in targets) and node.value:
                return [str(name) for name in ast.literal_eval(node.value)]
    return None


def defined_names(module: str) -> list[str]:
    """Functions and classes of a module that do not begin with an underscore."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [node.name for node in tree_of(module).body if isinstance(node, kinds)]
    return [name for name in names if not name.startswith("_")]


def test_public_names_are_one_sorted_list() -> None:
    wrong = []
    for module in MODULES:
        names, defined = public_names(module), defined_names(module)
        if names is None:
            wrong += [f"{module} has no __all__"] if defined else []
            continue
        in_order = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
        wrong += [f"{module}.__all__ is not sorted"] if names != in_order else []
        if layer_of(module) != "cli":  # commands are registered, not imported
            wrong += [f"{module}.{name} is not in __all__" for name in defined if name not in names]
    assert wrong == []


@pytest.mark.parametrize(
    ("imported", "forbidden"),
    [
        ("twotower", "torch polars onnxruntime faiss rich numpy"),
        ("twotower.config", "torch polars onnxruntime faiss rich"),
        ("twotower.index", "torch polars onnxruntime faiss"),
        ("twotower.publishing.generation", "torch polars onnxruntime faiss onnx"),
        ("twotower.serving.retriever", "torch polars pyarrow faiss onnx scipy"),
        ("twotower.client", "torch polars pyarrow onnxruntime faiss fastapi uvicorn orjson xxhash"),
        ("twotower.serving.server", "torch polars numpy onnxruntime faiss fastapi uvicorn"),
        ("twotower.serving.worker", "torch polars pyarrow onnxruntime faiss onnx scipy"),
    ],
)
def test_importing_stays_light(imported: str, forbidden: str) -> None:
    code = f"import sys, {imported}; sys.stdout.write(' '.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert sorted(set(forbidden.split()) & set(loaded)) == []


def committed_files() -> list[Path]:
    """What git knows; without git, everything that it would not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
        return [path for path in paths if path.is_file()]
    folders = ("src", "tests", "scripts", "docs", "examples", "benchmarks")
    return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]


def test_no_committed_file_names_a_private_folder() -> None:
    private = [("." + "./sha" + "red").encode(), ("/wo" + "rk/").encode()]
    naming = [
        str(path.relative_to(ROOT))
        for path in committed_files()
        if any(text in path.read_bytes() for text in private)
    ]
    assert naming == []


def test_every_make_target_is_documented() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    declared = " ".join(re.findall(r"^\.PHONY:(.*)$", text, flags=re.MULTILINE)).split()
    described = re.findall(r"^([a-z-]+):.* ## \S", text, flags=re.MULTILINE)
    assert sorted(declared) == sorted(described)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in declared if f"make {name}" not in readme] == []


def layer_table() -> str:
    """The table of docs/architecture.md, as it must stand there."""
    lines = ["| layer | modules | may import |", "|---|---|---|"]
    for name, row in LAYERS.items():
        modules = ", ".join(f"`{module}`" if module else "`twotower`" for module in row.modules)
        allowed = ", ".join(row.may_import) or "nothing of ours"
        lines.append(f"| {name} | {modules} | {'everything' if allowed == '*' else allowed} |")
    return "\n".join(lines)


def engine_table() -> str:
    """The second table of docs/architecture.md."""
    lines = ["| package | imported in |", "|---|---|"]
    for engine, places in sorted(ENGINES.items()):
        lines.append(f"| {engine} | {', '.join(f'`{place}`' for place in places)} |")
    return "\n".join(lines)


@pytest.mark.parametrize("table", [layer_table(), engine_table()], ids=["layers", "engines"])
def test_the_documented_tables_are_these(table: str) -> None:
    written = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert table in written, f"docs/architecture.md must hold:\n{table}"
