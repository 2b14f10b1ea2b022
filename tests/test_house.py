"""The rules of the house: rooms, who may know whom, sizes, and where a method's name may stand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import minialign
from minialign.methods.cards import CARDS

PACKAGE = Path(minialign.__file__).parent
FILES = {str(file.relative_to(PACKAGE)): file for file in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

# From the ground up. What stands together does not know each other.
FLOORS = (
    ("errors", "losses"),
    ("data", "model"),
    ("weights", "fused"),
    ("policy",),
    ("lora", "training", "feedback"),
    ("methods",),
    ("evaluation",),
    ("commands",),
    ("__init__", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WEIGHT_READERS = ("model/", "weights/", "policy/lora_linear.py", "policy/merge.py")
WITHOUT_TORCH = ("data/", "methods/cards.py", "evaluation/report/")


def room_of(name: str) -> str:
    return Path(name).parts[0].removesuffix(".py")


def module_of(name: str) -> str:
    parts = Path(name).with_suffix("").parts
    return ".".join(("minialign", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(name): name for name in FILES}


def imported(name: str) -> set[str]:
    """Every module that a file imports, also within functions and for type checking."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


def ours(name: str) -> set[str]:
    """The files of the package that a file imports."""
    return {MODULES[module] for module in imported(name) if module in MODULES}


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_the_package_was_found() -> None:
    assert {"methods/ditto.py", "model/transformer.py", "commands/train.py"} <= FILES.keys()
    assert "methods/sft.py" in ours("methods/ditto.py")


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_a_room(name: str) -> None:
    assert room_of(name) in FLOOR


@pytest.mark.parametrize("name", FILES)
def test_a_file_knows_only_rooms_below_its_own(name: str) -> None:
    own = room_of(name)
    for other in ours(name):
        room = room_of(other)
        # The version and the names of the public face are nobody's room.
        if room in (own, "__init__"):
            continue
        assert FLOOR[room] < FLOOR[own], f"{name} imports {other}"


def test_imports_never_go_in_circles() -> None:
    graph = {name: ours(name) - {"__init__.py"} for name in FILES}
    # Raises CycleError, naming the circle.
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_longer_than_it_may_be(name: str) -> None:
    assert FILES[name].read_text(encoding="utf-8").count("\n") <= LONGEST_FILE


@pytest.mark.parametrize("name", FILES)
def test_no_function_is_longer_than_it_may_be(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{name}, line {node.lineno}: {node.name}"


def test_what_help_and_reports_need_reaches_no_torch() -> None:
    starts = [n for n in FILES if n.startswith(WITHOUT_TORCH) or n.endswith("/knobs.py")]
    assert len(starts) > 20
    seen: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        heavy = {module.split(".")[0] for module in imported(name)} & {"torch", "safetensors"}
        assert not heavy, f"{name} imports {heavy}"
        waiting += ours(name) - {"__init__.py"}


def test_a_methods_name_stands_in_methods_alone() -> None:
    names = {card.name for card in CARDS} | {s.name for card in CARDS for s in card.stages}
    for name, tree in TREES.items():
        if room_of(name) == "methods":
            continue
        for line, text in strings(tree):
            assert text not in names, f"{name}, line {line}: {text!r}"


@pytest.mark.parametrize("template", sorted(PACKAGE.rglob("*.jinja")), ids=lambda path: path.name)
def test_no_template_compares_with_a_methods_name(template: Path) -> None:
    names = {card.name for card in CARDS} | {s.name for card in CARDS for s in card.stages}
    quoted = set(re.findall(r"[\"']([^\"'\n]*)[\"']", template.read_text(encoding="utf-8")))
    assert not quoted & names


@pytest.mark.parametrize("name", FILES)
def test_a_layers_weight_is_read_where_products_are_made(name: str) -> None:
    if name.startswith(WEIGHT_READERS):
        return
    for node in ast.walk(TREES[name]):
        is_weight = isinstance(node, ast.Attribute) and node.attr == "weight"
        # `self.weight` of anything that is no layer, such as an anchor's, is its own affair.
        own = is_weight and isinstance(node.value, ast.Name) and node.value.id == "self"
        assert not is_weight or own, f"{name}, line {node.lineno}"


def test_several_processes_are_one_files_affair() -> None:
    for name in FILES:
        uses = any(module.startswith("torch.distributed") for module in imported(name))
        assert not uses or name == "training/ranks.py", name
