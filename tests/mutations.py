"""Mutations of a JSON tree: one value changed or removed."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    "",
    "x",
    "../x",
    "\0",
    [],
    [None],
    [-1, "x"],
    {},
    {"counts": "x"},
    {"id": None},
)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in a tree of lists and dicts, including the root."""
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in below for place in places(value, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one value changed or removed."""
    path, odd = draw(st.sampled_from(places(tree))), draw(st.sampled_from(("absent", *ODD)))
    if not path:
        return odd
    tree = holder = copy.deepcopy(tree)
    for key in path[:-1]:
        holder = holder[key]
    if odd == "absent":
        del holder[path[-1]]
    else:
        holder[path[-1]] = odd
    return tree
