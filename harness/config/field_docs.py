"""The docstrings under the fields of the run file: the words of --help, of the JSON schema and of configs/README.md."""

import ast
import inspect

from harness.config import schema as config_module


def field_docs() -> dict[str, str]:
    """The docstring under each field of the run file, by dotted name, in the order of the file."""
    tree = ast.parse(inspect.getsource(config_module))
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    docs: dict[str, str] = {}

    def collect(prefix: str, kind: ast.ClassDef) -> None:
        for node, after in zip(kind.body, [*kind.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            inner = classes.get(ast.unparse(node.annotation))
            name = prefix + node.target.id
            if inner:
                collect(f"{name}.", inner)
            elif isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[name] = str(after.value.value)

    collect("", classes["Config"])
    return docs
