"""The code's structure in numbers: `python -m tests.support.structure` prints sizes, the rooms' import graph, and engine depth.

A room is a folder of `harness` or `launch`. An arrow from A to B means that a file of A imports one of B.
"""

import ast
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.unit.test_layers import FILES, ROOT, layer, ours

MANY_PARAMETERS = 7
COMPLEX_BRANCHES = 12
FOREIGN = ("ABC", "Exception", "Protocol", "NamedTuple", "Struct")
"""Classes of others, below which a tree is not one idea of ours."""
BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.BoolOp, ast.ExceptHandler, ast.comprehension, ast.match_case)


@dataclass(frozen=True)
class Function:
    """One function: where it is, its lines, its parameters (`self` and `cls` left out) and its branches."""

    place: str
    lines: int
    parameters: int
    branches: int


def functions() -> Iterator[Function]:
    """Every function and method of the product."""
    for file in FILES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            branches = sum(isinstance(inside, BRANCHES) for inside in ast.walk(node))
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(
                f"{file}:{node.lineno} {node.name}", lines, len([n for n in names if n not in ("self", "cls")]), branches
            )


def room(file: str) -> str:
    """The folder of a file, or the file itself where it lies beside the rooms."""
    parent = Path(file).parent
    return f"{parent}/" if len(parent.parts) > 1 else file


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in FILES:
        found[room(file)] |= {room(other) for other in ours(file)} - {room(file)}
    return dict(found)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of rooms that import one another in a circle (strongly connected components of more than one room)."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for other in graph.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    reached = {name: reach(name) for name in graph}
    groups = {tuple(sorted(other for other in reached[name] if name in reached.get(other, ()))) for name in graph}
    return [list(group) for group in sorted(groups) if group]


def subclasses() -> dict[str, set[str]]:
    """The direct subclasses of each class of the product, by name; those of other libraries' classes too."""
    below: dict[str, set[str]] = defaultdict(set)
    for file in FILES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    below[ast.unparse(base).partition("[")[0].rpartition(".")[2]].add(node.name)
    return dict(below)


def depth(root: str, below: dict[str, set[str]]) -> int:
    """The longest chain of subclasses below the class named `root`, itself not counted."""
    return max((1 + depth(child, below) for child in below.get(root, ())), default=0)


def main() -> int:
    """Print the measures; status 1 where a circle or an arrow up is found."""
    every = list(functions())
    lines = sorted(f.lines for f in every)
    print(
        f"functions: {len(every)}, lines: median {statistics.median(lines):g}, p90 {lines[len(lines) * 9 // 10]}, most {lines[-1]}"
    )
    many = [f for f in every if f.parameters >= MANY_PARAMETERS]
    print(f"with {MANY_PARAMETERS} or more parameters: {len(many)}")
    for f in sorted(many, key=lambda f: -f.parameters):
        print(f"  {f.parameters}  {f.place}")
    complex_ = [f for f in every if f.branches > COMPLEX_BRANCHES]
    print(f"with more than {COMPLEX_BRANCHES} branches: {len(complex_)}")
    for f in sorted(complex_, key=lambda f: -f.branches):
        print(f"  {f.branches}  {f.place}")
    below = subclasses()
    trees = sorted(((depth(name, below), name) for name in below if name not in FOREIGN), reverse=True)
    print(f"classes below Engine: {depth('Engine', below)} deep; deepest: {', '.join(f'{name} {n}' for n, name in trees[:5])}")
    graph = arrows()
    found = circles(graph)
    up = [f"{file} -> {other}" for file in FILES for other in sorted(ours(file)) if layer(other) > layer(file)]
    print(f"rooms: {len(graph)}, arrows: {sum(map(len, graph.values()))}, circles: {found or 'none'}, arrows up: {up or 'none'}")
    for name in sorted(graph):
        print(f"  {name} -> {', '.join(sorted(graph[name])) or 'nothing of ours'}")
    return 1 if found or up else 0


if __name__ == "__main__":
    sys.exit(main())
