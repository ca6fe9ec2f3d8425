"""What helps is said for where this is used: only a checkout has a Makefile, scripts and lists of packages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cua_agent import installation

ROOT = Path(__file__).parents[1]
TARGETS = "|".join(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
OF_A_CHECKOUT = re.compile(rf"\bmake ({TARGETS})\b|\b(requirements|scripts|benchmarks)/|python (train|compare)\.py")


def test_this_is_a_checkout() -> None:
    assert installation.CHECKOUT and installation.ROOT == ROOT


@pytest.mark.parametrize(("checkout", "words"), [(True, "make setup"), (False, "pip install x")])
def test_a_hint_is_for_where_it_is_read(checkout: bool, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "CHECKOUT", checkout)
    assert installation.hint(checkout="make setup", installed="pip install x") == words


@pytest.mark.parametrize("package", ["cua_agent", "trainers"])
def test_nothing_else_tells_a_user_of_the_package_to_type_what_only_a_checkout_has(package: str) -> None:
    said = [
        f"{file.relative_to(ROOT)}: {text}"
        for file in (ROOT / package).rglob("*.py")
        for text in texts_for_everybody(ast.parse(file.read_text(encoding="utf-8")))
        if OF_A_CHECKOUT.search(text)
    ]
    assert said == []


def test_the_search_finds_such_a_text_and_leaves_out_what_is_for_a_checkout() -> None:
    source = "'''make browser'''\nx = f'{1}: make browser'\ny = hint(checkout='make setup', installed='scripts/a')"
    assert [text for text in texts_for_everybody(ast.parse(source)) if OF_A_CHECKOUT.search(text)] == [
        ": make browser",
        "scripts/a",
    ]


def texts_for_everybody(tree: ast.Module) -> Iterator[str]:
    """Texts in a module but docstrings and those that `hint` gives in a checkout."""
    apart = {id(inner) for node in ast.walk(tree) for part in left_out(node) for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart:
            yield node.value


def left_out(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return [node]
    if isinstance(node, ast.keyword) and node.arg == "checkout":
        return [node]
    return []
