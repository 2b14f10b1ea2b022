"""The package as a whole: everything imports, and imports point one way."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
from helpers.processes import ROOT, run_python

import minialign

PACKAGE = ROOT / "minialign"
SCRIPTS = ("train", "sample", "evaluate")
BENCHMARKS = ("README", "c3po", "ditto", "ditto_study", "speed")
PAGES = ["README.md", "examples/c3po/README.md", *(f"benchmarks/{name}.md" for name in BENCHMARKS)]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(file: Path, *, everywhere: bool = True) -> set[str]:
    """Modules that a file imports: `everywhere`, or only when it is itself imported (not within
    functions, not for type checking).
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not everywhere and (typing_only or isinstance(node, ast.FunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: a relative import"
            found.update(
                name if (name := f"{node.module}.{alias.name}") in FILES else node.module
                for alias in node.names
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def top_level(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_the_map_of_modules_is_not_empty() -> None:
    assert {"minialign", "minialign.model.rope", "minialign.methods.ditto"} <= FILES.keys()
    assert "minialign.model.attention" in imports(FILES["minialign.model.transformer"])


@pytest.mark.parametrize("name", FILES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_importing_the_package_is_instant() -> None:
    source = (
        "import sys, minialign; from minialign import InputError; "
        "print(sorted({'torch', 'numpy', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    )
    process = run_python(["-c", source], ROOT)
    assert (process.stdout.strip(), process.stderr) == ("[]", "")


def test_every_public_name_is_there() -> None:
    for name in minialign.__all__:
        assert getattr(minialign, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        minialign.nothing  # noqa: B018


def test_nothing_in_the_package_imports_a_script() -> None:
    for name, file in FILES.items():
        assert not top_level(imports(file)) & set(SCRIPTS), name


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("losses", set()),
        ("model.quantised", set()),
        (
            "model.matmul",
            {"minialign.errors", "minialign.model.quantised", "minialign.model.stored"},
        ),
        ("model.stored", {"minialign.model.quantised"}),
        ("model.activations", set()),
        ("fused", {"minialign.model.matmul"}),
    ],
)
def test_the_mathematics_imports_torch_and_nothing_else(name: str, ours: set[str]) -> None:
    """But for the matrix product, which itself needs only torch."""
    found = imports(FILES[f"minialign.{name}"]) - ours
    assert "torch" in top_level(found)
    assert top_level(found) - {"torch"} <= sys.stdlib_module_names


@pytest.mark.parametrize("door", [*(f"{name}.py" for name in SCRIPTS), "-m minialign"])
def test_help_imports_nothing_heavy(door: str) -> None:
    """Heavy is what takes longer than the answer may."""
    source = (
        "import runpy, sys; sys.argv = ['door', '--help']\n"
        f"door = {door!r}\n"
        "try: runpy.run_module('minialign', run_name='__main__') if door[0] == '-' "
        "else runpy.run_path(door, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'safetensors', 'huggingface_hub', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    process = run_python(["-c", source], ROOT)
    assert process.stderr.strip() == "[]" and len(process.stdout.split("\n")) > 5


def test_scripts_import_no_script() -> None:
    for script in SCRIPTS:
        assert not top_level(imports(ROOT / f"{script}.py")) & (set(SCRIPTS) - {script})


def test_no_pickle_is_read_anywhere() -> None:
    for name, file in FILES.items():
        found = top_level(imports(file))
        assert not found & {"pickle", "shelve", "joblib", "dill"}, name
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        assert not calls & {"torch.load", "np.load", "numpy.load", "eval", "exec"}, name


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file(page: str) -> None:
    file = ROOT / page
    text = file.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links and "@@" not in text
    for link in links:
        assert link.startswith("https://") or (file.parent / link).exists(), link
