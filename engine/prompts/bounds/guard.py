"""Puts into a template's tree the filters that bound it; what they do is the sandbox's affair."""

from __future__ import annotations

import math

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

EACH, JOINED, MADE = "for each", "~", "a literal"
"""Names of filters that no template can name: of what a loop goes through, of `~`, of literals."""


class Guard(NodeTransformer):
    """Lets loops, concatenations and literals of a template pass through a filter that bounds them."""

    def visit_Const(self, node: nodes.Const) -> nodes.Node:  # noqa: N802
        """Refuses numbers beyond the range of floats: compiled, they would be the name `inf`."""
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise jinja2.TemplateSyntaxError("a number is too large", node.lineno)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        """Adds what bounds a loop, and refuses recursive ones."""
        if node.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not allowed", node.lineno)
        num_characters = sum(_own_characters(child) for child in node.body)
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _filtered(node.iter, EACH, nodes.Const(num_characters))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        """Adds what counts a concatenation."""
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), JOINED)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        """Adds what measures a list."""
        self.generic_visit(node)
        return node if _is_constant(node) else _filtered(node, MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        """Adds what measures a tuple, unless it is one of targets."""
        self.generic_visit(node)
        return node if node.ctx != "load" or _is_constant(node) else _filtered(node, MADE)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        """Adds what measures a mapping."""
        self.generic_visit(node)
        return _filtered(node, MADE)


def _filtered(node: nodes.Expr, name: str, *given: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(given), [], None, None, lineno=node.lineno)


def _is_constant(node: nodes.List | nodes.Tuple) -> bool:
    return all(isinstance(item, nodes.Const) for item in node.items)


def _own_characters(node: nodes.Node) -> int:
    """Characters that a part of a loop's body writes each time, without those of loops in it."""
    if isinstance(node, nodes.TemplateData):
        return len(node.data)
    if isinstance(node, nodes.For):
        return 0
    return sum(_own_characters(child) for child in node.iter_child_nodes())
