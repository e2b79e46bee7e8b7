"""What a function's body calls, in the order of evaluation, read from its syntax tree: nothing is imported or executed.

What an expression stands for is a *reference*, a nested tuple that `python_names` resolves once every module has been read:

  ("name", n)             what n means in this module
  ("import", m)           the module m
  ("definition", q)       the function or class with the qualified name q
  ("variable", q, r)      the module's variable q, to which r is assigned
  ("attribute", r, n)     r.n
  ("result", r)           what r(...) returns
  ("instance", r)         an instance of the class r
  ("super", q)            super() inside class q
  ("method", n)           the method n of an object of unknown class
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

Reference = tuple  # recursive, which a type alias of Python 3.11 cannot say

_TEXT = ("instance", ("name", "str"))


def imported(node: ast.Import | ast.ImportFrom, parent: str) -> Iterator[tuple[str, Reference]]:
    """The names that an import statement binds; relative imports start from the package `parent`. `from m import *` binds "*" to m."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield (alias.asname, ("import", alias.name)) if alias.asname else (top, ("import", top))
        return
    packages = parent.split(".")
    ancestors = packages[: len(packages) - node.level + 1] if node.level else []
    origin = ("import", ".".join([*ancestors, *filter(None, [node.module])]))
    for alias in node.names:
        yield ("*", origin) if alias.name == "*" else (alias.asname or alias.name, ("attribute", origin, alias.name))


def annotated(node: ast.expr | None, environment: dict[str, Reference | None], owner: str | None) -> Reference | None:
    """An instance of the class that an annotation names: `C`, `"C"`, `C[...]`, `C | None`, `Optional[C]`, `Self`."""
    match node:
        case ast.Constant(value=str(text)):
            try:
                return annotated(ast.parse(text, mode="eval").body, environment, owner)
            except SyntaxError:
                return None
        case ast.BinOp(op=ast.BitOr(), left=left, right=ast.Constant(value=None)) | ast.BinOp(op=ast.BitOr(), left=ast.Constant(value=None), right=left):
            return annotated(left, environment, owner)
        case ast.Subscript(value=ast.Name(id="Optional") | ast.Attribute(attr="Optional"), slice=inner):
            return annotated(inner, environment, owner)
        case ast.Subscript(value=ast.Name(id="type" | "Type") | ast.Attribute(attr="Type"), slice=inner):
            instance = annotated(inner, environment, owner)
            return instance and instance[1]
        case ast.Subscript(value=value):
            return annotated(value, environment, owner)
        case ast.Name(id="Any" | "Callable" | "object" | "type") | ast.Attribute(attr="Any" | "Callable"):
            return None
        case ast.Name(id="Self") | ast.Attribute(attr="Self"):
            return ("instance", ("definition", owner)) if owner else None
        case ast.Name() | ast.Attribute():
            reference = _dotted(node, environment)
            return reference and ("instance", reference)
    return None


def _dotted(node: ast.expr, environment: dict[str, Reference | None]) -> Reference | None:
    if isinstance(node, ast.Name):
        return environment.get(node.id, ("name", node.id))
    if isinstance(node, ast.Attribute) and (reference := _dotted(node.value, environment)):
        return ("attribute", reference, node.attr)
    return None


class Body:
    """Walks a function's body in evaluation order. Nested functions and classes are walked where they are written.

    Attributes:
      environment: what each local name refers to at this point; None where that is unknown.
      calls: what has been called so far.
      attributes: what has been assigned to attributes of `self`.
      returned: what the first `return` whose meaning is known gives.
    """

    def __init__(self, parent: str, environment: dict[str, Reference | None] | None = None, owner: str | None = None):
        environment = environment or {}
        self.parent = parent
        self.environment = environment
        self.owner = owner
        self.itself = next(iter(environment), None)
        self.calls: list[Reference] = []
        self.attributes: dict[str, Reference] = {}
        self.returned: Reference | None = None
        self.depth = 0

    def run(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        """Binds the parameters and walks the body."""
        arguments = node.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            if self.depth or argument.arg != self.itself:
                self.environment[argument.arg] = annotated(argument.annotation, self.environment, self.owner)
        for argument in (arguments.vararg, arguments.kwarg):
            if argument:
                self.environment[argument.arg] = None
        self.visit_all(node.body if isinstance(node.body, list) else [node.body])

    def visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit(self, node: ast.AST) -> Reference | None:
        """Walks a node; returns what an expression refers to."""
        if handler := _HANDLERS.get(type(node)):
            return handler(self, node)
        for field in node._fields:  # for every other node the grammar's order is the order of evaluation
            value = getattr(node, field, None)
            if isinstance(value, list):
                for child in value:
                    if isinstance(child, ast.AST):
                        self.visit(child)
            elif isinstance(value, ast.AST):
                self.visit(value)
        return None

    def leaf(self, node: ast.AST) -> None:
        return None

    def constant(self, node: ast.Constant) -> Reference | None:
        return _TEXT if isinstance(node.value, str) else None

    def joined(self, node: ast.JoinedStr) -> Reference:
        self.visit_all(node.values)
        return _TEXT

    def display(self, node: ast.List | ast.Set) -> Reference:
        self.visit_all(node.elts)
        return ("instance", ("name", type(node).__name__.lower()))

    def name(self, node: ast.Name) -> Reference | None:
        return self.environment.get(node.id, ("name", node.id))

    def attribute(self, node: ast.Attribute) -> Reference | None:
        reference = self.visit(node.value)
        return reference and ("attribute", reference, node.attr)

    def call(self, node: ast.Call) -> Reference | None:
        callee = self.visit(node.func)
        arguments = [self.visit(argument) for argument in node.args]
        self.visit_all(keyword.value for keyword in node.keywords)
        if callee == ("name", "super"):
            return ("super", self.owner) if self.owner else None
        if callee is None and isinstance(node.func, ast.Attribute):
            callee = ("method", node.func.attr)
        if callee is None:
            return None
        self.calls.append(callee)
        if callee[-1] == "partial" and arguments:  # functools.partial(f, ...) is called as f
            return arguments[0]
        return ("result", callee)

    def awaited(self, node: ast.Await) -> Reference | None:
        return self.visit(node.value)  # the annotation of an async function is what awaiting it gives

    def give(self, node: ast.Return) -> None:
        reference = self.visit(node.value) if node.value else None
        if not self.depth:
            self.returned = self.returned or reference

    def named(self, node: ast.NamedExpr) -> Reference | None:
        reference = self.visit(node.value)
        self.bind(node.target, reference)
        return reference

    def conditional(self, node: ast.IfExp) -> Reference | None:
        self.visit(node.test)
        body, orelse = self.visit(node.body), self.visit(node.orelse)
        return body or orelse

    def either(self, node: ast.BoolOp) -> Reference | None:
        return [self.visit(value) for value in node.values][-1]

    def pairs(self, node: ast.Dict) -> Reference:
        for key, value in zip(node.keys, node.values, strict=True):
            self.visit_all((key, value))
        return ("instance", ("name", "dict"))

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Reference | None:
        outer, self.environment = self.environment, dict(self.environment)
        for generator in node.generators:
            self.visit(generator.iter)
            self.bind(generator.target, None)
            self.visit_all(generator.ifs)
        self.visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        self.environment = outer
        kind = {ast.ListComp: "list", ast.SetComp: "set", ast.DictComp: "dict"}.get(type(node))
        return ("instance", ("name", kind)) if kind else None

    def closure(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
        applied = [self.visit(decorator) for decorator in decorators]
        self.visit_all([*node.args.defaults, *node.args.kw_defaults])
        outer, self.environment = self.environment, dict(self.environment)
        self.depth += 1
        self.run(node)
        self.depth -= 1
        self.environment = outer
        self.calls.extend(reference for reference in reversed(applied) if reference)  # decorating is calling
        if not isinstance(node, ast.Lambda):
            self.environment[node.name] = None

    def nested_class(self, node: ast.ClassDef) -> None:
        self.visit_all([*node.decorator_list, *node.bases])
        outer, self.environment, owner, self.owner = self.environment, dict(self.environment), self.owner, None
        self.visit_all(node.body)
        self.environment, self.owner = outer, owner
        self.environment[node.name] = None

    def local_import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.environment.update(imported(node, self.parent))

    def assign(self, node: ast.Assign) -> None:
        reference = self.visit(node.value)
        for target in node.targets:
            self.bind(target, reference)

    def annotated_assign(self, node: ast.AnnAssign) -> None:
        reference = self.visit(node.value) if node.value else None
        self.bind(node.target, annotated(node.annotation, self.environment, self.owner) or reference)

    def loop(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self.bind(node.target, None)
        self.visit_all([*node.body, *node.orelse])

    def context(self, node: ast.withitem) -> None:
        reference = self.visit(node.context_expr)
        if node.optional_vars:
            self.bind(node.optional_vars, reference)  # `__enter__` returns self, by far the most often

    def handler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.environment[node.name] = None
        self.visit_all([node.type, *node.body])

    def bind(self, target: ast.expr, reference: Reference | None) -> None:
        match target:
            case ast.Name(id=name):
                self.environment[name] = reference
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name == self.itself:
                if reference:
                    self.attributes.setdefault(attribute, reference)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self.bind(part, None)
            case ast.Starred(value=value):
                self.bind(value, None)
            case _:
                self.visit(target)


_HANDLERS = {
    **dict.fromkeys((ast.Load, ast.Store, ast.Global, ast.Nonlocal, ast.Pass), Body.leaf),
    **dict.fromkeys((ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp), Body.comprehension),
    **dict.fromkeys((ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda), Body.closure),
    **dict.fromkeys((ast.Import, ast.ImportFrom), Body.local_import),
    **dict.fromkeys((ast.For, ast.AsyncFor), Body.loop),
    **dict.fromkeys((ast.List, ast.Set), Body.display),
    ast.Constant: Body.constant,
    ast.JoinedStr: Body.joined,
    ast.Dict: Body.pairs,
    ast.Name: Body.name,
    ast.Attribute: Body.attribute,
    ast.Call: Body.call,
    ast.Await: Body.awaited,
    ast.NamedExpr: Body.named,
    ast.IfExp: Body.conditional,
    ast.BoolOp: Body.either,
    ast.ClassDef: Body.nested_class,
    ast.Assign: Body.assign,
    ast.AnnAssign: Body.annotated_assign,
    ast.withitem: Body.context,
    ast.ExceptHandler: Body.handler,
    ast.Return: Body.give,
}
