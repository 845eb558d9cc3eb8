"""A run file as text, which reads back as the same: what this reader takes for a number is quoted where it is text."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+")
"""Numbers of YAML 1.2 that YAML 1.1 has no eye for: 1e-3, 0E0."""


class _Dumper(yaml.SafeDumper):
    """Sees both YAMLs' numbers and words, so that what it writes bare is text to both."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Plain data as YAML, in the order given."""
    text: str = yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False)
    return text
