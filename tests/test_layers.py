"""The layers point one way: read from the source of every module, nothing is imported.

typer_cli.py → commands → runs → scenario → training → (physics, networks) → core; plugins → the public API.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import toolkit

ROOT = Path(toolkit.__file__).parent.parent

MAY_IMPORT = {
    "core": {"core"},
    "physics": {"core", "physics"},
    "networks": {"core", "networks"},
    "training": {"core", "physics", "networks", "training"},
    "scenario": {"core", "physics", "networks", "training", "scenario"},
    "runs": {"core", "physics", "networks", "training", "scenario", "runs"},
    "commands": {"core", "physics", "networks", "training", "scenario", "runs", "commands"},
}
"""By layer of toolkit, the layers that its modules may name; modules of `toolkit` itself may name all."""

FRAMEWORKS = {"torch", "jax", "equinox", "optax"}
LONGEST_FILE = 400


def product_files(root: Path) -> list[Path]:
    """Every module of the product, without tests."""
    found = [*root.glob("toolkit/**/*.py"), *root.glob("plugins/**/*.py"), *root.glob("typer_cli.py")]
    return sorted(found)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nodes_with_context(tree: ast.AST, inside: str = "module") -> Iterator[tuple[ast.stmt, str]]:
    """Each import statement with where it stands: `module`, `function` or `type checking`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, inside
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from nodes_with_context(node, "function")
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from nodes_with_context(node, "type checking")
        else:
            yield from nodes_with_context(node, inside)


def imports(path: Path, root: Path) -> list[tuple[str, str, int]]:
    """(dotted name, where it stands, line) of all imports; `from a import b` gives `a.b`."""
    found = []
    package = module_name(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node, inside in nodes_with_context(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(f"{module}.{alias.name}", inside, node.lineno) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, inside, node.lineno) for alias in node.names]
    return found


def upward_imports(root: Path) -> list[str]:
    """Imports of a layer that the importing layer stands below."""
    wrong = []
    for path in root.glob("toolkit/**/*.py"):
        parts = path.relative_to(root / "toolkit").parts
        if len(parts) == 1:
            continue
        for name, _, line in imports(path, root):
            top, *rest = name.split(".")
            if top in {"plugins", "typer_cli"}:
                wrong.append(f"{path.relative_to(root)}:{line}: toolkit never imports {top}")
            elif top == "toolkit" and (not rest or rest[0] not in MAY_IMPORT.get(parts[0], set())):
                wrong.append(f"{path.relative_to(root)}:{line}: {parts[0]} may not import {name}")
    return wrong


def stray_frameworks(root: Path) -> list[str]:
    """Frameworks named elsewhere than in toolkit/core/torch_*.py and jax_*.py."""
    wrong = []
    for path in product_files(root):
        home = path.parent == root / "toolkit" / "core" and path.name.startswith(("torch_", "jax_"))
        for name, _, line in imports(path, root):
            if name.split(".")[0] in FRAMEWORKS and not home:
                wrong.append(f"{path.relative_to(root)}:{line}: only toolkit/core may import {name}")
    return wrong


def foreign_toolkit_imports(root: Path, public: list[str]) -> list[str]:
    """What plugins take from toolkit otherwise than by `from toolkit import <public name>`."""
    wrong = []
    for path in root.glob("plugins/**/*.py"):
        for name, _, line in imports(path, root):
            if name.split(".")[0] == "toolkit" and name not in {f"toolkit.{known}" for known in public}:
                wrong.append(f"{path.relative_to(root)}:{line}: {name} is not in toolkit.__all__")
    return wrong


def hidden_imports(root: Path) -> list[str]:
    """Imports inside functions where they are not the point of the module."""
    allowed = {"typer_cli.py", "toolkit/__init__.py", "toolkit/core/backend.py", "toolkit/core/compat.py"}
    allowed |= {"toolkit/runs/late.py"}
    wrong = []
    for path in product_files(root):
        relative = path.relative_to(root).as_posix()
        if relative in allowed or relative.startswith("toolkit/commands/"):
            continue
        wrong += [f"{relative}:{line}: {name}" for name, inside, line in imports(path, root) if inside == "function"]
    return wrong


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the product that it needs to be imported itself."""
    modules = {module_name(path, root): path for path in product_files(root)}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = [name for name, inside, _ in imports(path, root) if inside == "module"]
        # `from a import b`: b is a module, or something in module a.
        needed = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (needed & set(modules)) - {module}
    return graph


def long_files(root: Path) -> list[str]:
    """Files that should be two."""
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in product_files(root)}
    return [f"{path.relative_to(root)}: {n} lines" for path, n in lengths.items() if n > LONGEST_FILE]


def test_layers_point_one_way() -> None:
    assert upward_imports(ROOT) == []


def test_only_core_knows_frameworks() -> None:
    assert stray_frameworks(ROOT) == []


def test_plugins_use_the_public_api_alone() -> None:
    assert foreign_toolkit_imports(ROOT, toolkit.__all__) == []


def test_imports_stand_at_the_top() -> None:
    assert hidden_imports(ROOT) == []


def test_there_is_no_import_cycle() -> None:
    graph = import_graph(ROOT)
    assert "toolkit.core.errors" in graph["toolkit.core.compat"]
    graphlib.TopologicalSorter(graph).prepare()


def test_files_are_short() -> None:
    assert long_files(ROOT) == []


def test_layers_below_a_run_load_no_framework() -> None:
    modules = [module_name(path, ROOT) for path in product_files(ROOT)]
    wanted = [m for m in modules if not m.startswith(("toolkit.core.torch_", "toolkit.core.jax_", "typer_cli"))]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {wanted!r}]; print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert FRAMEWORKS & set(ast.literal_eval(result.stdout)) == set()


@pytest.fixture
def bad_tree(tmp_path: Path) -> Path:
    """A product that breaks every rule once."""
    files = {
        "toolkit/__init__.py": "",
        "toolkit/core/__init__.py": "",
        "toolkit/core/low.py": "from toolkit.physics import high\n",
        "toolkit/physics/__init__.py": "",
        "toolkit/physics/high.py": "import torch\nfrom ..core import low\n\ndef f():\n    import json\n",
        "plugins/pde.py": "from toolkit import Grid\nfrom toolkit.core.low import thing\n",
        "typer_cli.py": "def f():\n    import json\n" + "\n" * LONGEST_FILE,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_rules_find_what_breaks_them(bad_tree: Path) -> None:
    assert upward_imports(bad_tree) == ["toolkit/core/low.py:1: core may not import toolkit.physics.high"]
    assert stray_frameworks(bad_tree) == ["toolkit/physics/high.py:1: only toolkit/core may import torch"]
    assert foreign_toolkit_imports(bad_tree, ["Grid"]) == [
        "plugins/pde.py:2: toolkit.core.low.thing is not in toolkit.__all__"
    ]
    assert hidden_imports(bad_tree) == ["toolkit/physics/high.py:5: json"]
    assert long_files(bad_tree) == [f"typer_cli.py: {LONGEST_FILE + 2} lines"]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(bad_tree)).prepare()
