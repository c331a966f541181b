"""Compiles chat templates to code that counts what it does."""

from collections.abc import Iterable
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_NODES = 15_000


def public_attributes(kind: type, *left_out: str) -> frozenset[str]:
    """The names of a type's own attributes that the sandbox lets templates have."""
    sandbox, example = ImmutableSandboxedEnvironment(), kind()
    names = (name for name in dir(kind) if name not in left_out)
    return frozenset(
        name for name in names if sandbox.is_safe_attribute(example, name, getattr(example, name))
    )


# The methods of text, without those that make bytes and tables, and the two that need checks of their own.
TEXT_METHODS = public_attributes(str, "encode", "maketrans", "translate", "format", "format_map")

DICT_ATTRIBUTES = frozenset(dir(dict))


def require_compilable(template: nodes.Template) -> None:
    """Raises jinja2.TemplateSyntaxError where a template has more parts than Python should compile."""
    for number, _ in enumerate(template.find_all(nodes.Node)):
        if number == MAX_NODES:
            raise jinja2.TemplateSyntaxError(f"the template has more than {MAX_NODES:,} expressions", 1)


class CountingCodeGenerator(CodeGenerator):
    """Writes calls of the environment where jinja2 writes operators; each block begins with `spend(n)`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._iterables: set[int] = set()

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if id(node) not in self._iterables:
            return super().visit(node, *args, **kwargs)
        self.write("environment.iterated(")
        super().visit(node, *args, **kwargs)
        self.write(")")
        return None

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("spend = environment.budget().spend")

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        statements = list(nodes)
        self.writeline(f"spend({_num_steps(statements)})")
        super().blockvisit(statements, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802  (jinja2's names, here and below)
        if node.test is not None:
            counting = nodes.EnvironmentAttribute(f"spent({_num_steps([node.test])})")
            node.test = nodes.And(counting, node.test).set_lineno(node.lineno)
        self._iterables.add(id(node.iter))
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat((")
        for part in node.nodes:
            self.write("environment.finalize(")
            self.visit(part, frame)
            self.write("), ")
        self.write("))")

    def visit_Add(self, node: nodes.Add, frame: Frame) -> None:  # noqa: N802
        parts: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            parts.append(left.right)
            left = left.left
        self.write("environment.added((")
        for part in (left, *reversed(parts)):
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        compares_with_constant = isinstance(node.expr, nodes.Const) or isinstance(
            node.ops[0].expr, nodes.Const
        )
        if len(node.ops) == 1 and node.ops[0].op in ("eq", "ne") and compares_with_constant:
            super().visit_Compare(node, frame)
            return
        self.write("(")
        self._visit_within("compared", node.expr, frame)
        for operand in node.ops:
            self.write(f" {operators[operand.op]} ")
            self._visit_within(
                "searched" if operand.op in ("in", "notin") else "compared", operand.expr, frame
            )
        self.write(")")

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        num_places = _num_places(node.value)
        if num_places:
            self.write(f"environment.held({num_places}, ")
        super().visit_Const(node, frame)
        self.write(")" if num_places else "")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self.write(f"environment.held({len(node.items)}, ")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write(f"environment.held({len(node.items)}, ")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write(f"environment.held({2 * len(node.items)}, {{")
        for item in node.items:
            self._visit_within("key", item.key, frame)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("})")

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:  # noqa: N802
        self.write("environment.getattr(" if node.attr in DICT_ATTRIBUTES else "environment.field(")
        self.visit(node.node, frame)
        self.write(f", {node.attr!r})")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.cut(")
        self.visit(node.node, frame)
        self.write(", slice(")
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.visit(bound or nodes.Const(None), frame)
            self.write(", ")
        self.write("))")

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:  # noqa: N802
        method = node.node
        if isinstance(method, nodes.Getattr) and method.attr in TEXT_METHODS and not node.kwargs:
            self.write("environment.call_method(context, ")
            self.visit(method.node, frame)
            self.write(f", {method.attr!r}")
            self.signature(node, frame, {"caller": "caller"} if forward_caller else None)
            self.write(")")
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def signature(
        self, node: nodes.Call | nodes.Filter | nodes.Test, frame: Frame, extra_kwargs: Any = None
    ) -> None:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            self.fail("arguments with * or ** are not for chat templates", node.lineno)
        super().signature(node, frame, extra_kwargs)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.finalize(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")

    def _visit_within(self, name: str, node: nodes.Expr, frame: Frame) -> None:
        if isinstance(node, nodes.Const):
            self.visit(node, frame)
            return
        self.write(f"environment.{name}(")
        self.visit(node, frame)
        self.write(")")

    def _refuse_loading(self, node: nodes.Node, frame: Frame) -> None:
        self.fail("a chat template stands alone: it cannot load another one", node.lineno)

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _refuse_loading

    def visit_ScopedEvalContextModifier(  # noqa: N802
        self, node: nodes.ScopedEvalContextModifier, frame: Frame
    ) -> None:
        self.fail("autoescape is for HTML, not for chat templates", node.lineno)


def _num_steps(block: Iterable[nodes.Node]) -> int:
    """How many nodes are evaluated when a block is entered, without those of the blocks within it."""
    pending, num_steps = list(block), 1
    while pending:
        node = pending.pop()
        num_steps += 32 if isinstance(node, nodes.Macro | nodes.CallBlock) else 1
        pending.extend(node.iter_child_nodes(exclude=("body", "else_")))
    return num_steps


def _num_places(constant: Any) -> int:
    """How many places a constant has, if it is a list or the like; such a constant is made each time anew."""
    if isinstance(constant, dict):
        constant = [part for entry in cast(dict[Any, Any], constant).items() for part in entry]
    if not isinstance(constant, list | tuple):
        return 0
    return 1 + sum(1 + _num_places(part) for part in cast(list[Any], constant))
