"""What one Python module defines, what its names mean and what its functions call, read from its syntax tree."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import warnings
from collections.abc import Iterable

from jaxrec.data.builders.python_calls import Body, Reference, annotated, imported


@dataclasses.dataclass
class Definition:
    """A function, property or class.

    Attributes:
      kind: "function", "property" or "class".
      text: the first paragraph of the docstring.
      returns: what a call returns: an instance of the annotated class, or of what stands after the first `return`.
      bases: the base classes.
      members: what a class's methods, attributes and nested classes mean.
    """

    module: str
    kind: str
    text: str = ""
    returns: Reference | None = None
    bases: list[Reference] = dataclasses.field(default_factory=list)
    members: dict[str, Reference] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Module:
    """What one source file says.

    Attributes:
      bindings: the meaning of each module-level name. The first binding counts: `try` and `if` put the preferred one first.
      stars: the modules whose names are imported with `*`.
      exports: names that the module offers as its own: `__all__`, `import a as a`, every import of a package's `__init__`.
      definitions: by qualified name.
      documents: docstrings of compiled functions, which numpy gives as `add_newdoc(module, name, text)`, by module and name.
      calls: what each outermost function or method calls, by qualified name, in evaluation order.
    """

    name: str
    bindings: dict[str, Reference] = dataclasses.field(default_factory=dict)
    stars: list[str] = dataclasses.field(default_factory=list)
    exports: set[str] = dataclasses.field(default_factory=set)
    definitions: dict[str, Definition] = dataclasses.field(default_factory=dict)
    documents: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    calls: dict[str, list[Reference]] = dataclasses.field(default_factory=dict)

    def defined(self) -> set[str]:
        """Module-level names that are defined here rather than imported."""
        return {name for name, reference in self.bindings.items() if reference[0] in ("definition", "variable")}


def read_module(source: bytes, name: str, *, package: bool) -> Module:
    """Parses the module `name`; `package` says that the file is an `__init__.py`.

    Raises:
      SyntaxError: the source is not of this Python version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        tree = ast.parse(source)
    module = Module(name)
    _Scope(module, name if package else name.rpartition(".")[0], name).read(tree.body)
    if package:
        module.exports.update(n for n, reference in module.bindings.items() if reference[0] == "attribute")
    return module


def first_paragraph(docstring: str | None) -> str:
    """The first paragraph on one line; signatures, with which the documentation of C functions begins, are passed over."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    summaries = (paragraph for paragraph in paragraphs if not re.match(r"\w+\(|--", paragraph))
    return " ".join(next(summaries, paragraphs[0]).split())


class _Scope:
    """The body of a module, or of one of its classes, and what it binds.

    Attributes:
      parent: the package that relative imports start from.
      prefix: the qualified name of the module or class.
      owner: the class; None for the module.
    """

    def __init__(self, module: Module, parent: str, prefix: str, owner: Definition | None = None):
        self.module = module
        self.parent = parent
        self.prefix = prefix
        self.owner = owner
        self.class_name = prefix if owner else None
        self.bindings = owner.members if owner else module.bindings

    def read(self, statements: Iterable[ast.stmt]) -> None:
        for node in statements:
            match node:
                case ast.Import() | ast.ImportFrom():
                    for name, reference in imported(node, self.parent):
                        if name == "*":
                            self.module.stars.append(reference[1])
                        else:
                            self.bindings.setdefault(name, reference)
                    self.module.exports.update(alias.name for alias in node.names if alias.asname == alias.name)
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self.bindings.setdefault(node.name, ("definition", f"{self.prefix}.{node.name}"))
                    self.function(node)
                case ast.ClassDef():
                    self.bindings.setdefault(node.name, ("definition", f"{self.prefix}.{node.name}"))
                    self.nested_class(node)
                case ast.Assign(targets=targets, value=value) if not isinstance(value, ast.Constant):
                    for target in targets:
                        if isinstance(target, ast.Name):
                            self.assign(target.id, value)
                case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                    if declared := annotated(annotation, {}, self.class_name):
                        self.bindings.setdefault(name, declared)
                    elif value is not None:
                        self.assign(name, value)
                case ast.Expr(value=ast.Call(func=ast.Name(id="add_newdoc"), args=[ast.Constant(value=str(place)), ast.Constant(value=str(name)), text])) if (
                    not isinstance(text, ast.Tuple)
                ):
                    texts = [part.value for part in ast.walk(text) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
                    self.module.documents[place, name] = first_paragraph(texts[0] if texts else "")
                case ast.If() | ast.Try() | ast.TryStar() | ast.With() | ast.For() | ast.While():
                    for block in (node, *getattr(node, "handlers", ())):
                        for field in ("body", "orelse", "finalbody"):
                            self.read(getattr(block, field, ()))

    def assign(self, name: str, value: ast.expr) -> None:
        if name == "__all__":
            self.module.exports.update(c.value for c in ast.walk(value) if isinstance(c, ast.Constant) and isinstance(c.value, str))
            return
        reference = Body(self.parent).visit(value)
        if self.owner is None:
            self.bindings.setdefault(name, ("variable", f"{self.prefix}.{name}", reference))
        elif reference:
            self.bindings.setdefault(name, reference)

    def nested_class(self, node: ast.ClassDef) -> None:
        qualified = f"{self.prefix}.{node.name}"
        if qualified in self.module.definitions:  # the second branch of an `if`
            return
        body = Body(self.parent)
        bases = [reference for base in node.bases if (reference := body.visit(base.value if isinstance(base, ast.Subscript) else base))]
        definition = Definition(self.module.name, "class", first_paragraph(ast.get_docstring(node, clean=False)), bases=bases)
        self.module.definitions[qualified] = definition
        _Scope(self.module, self.parent, qualified, definition).read(node.body)

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        qualified = f"{self.prefix}.{node.name}"
        decorators = {d.attr if isinstance(d, ast.Attribute) else d.id for d in node.decorator_list if isinstance(d, (ast.Name, ast.Attribute))}
        if "overload" in decorators or qualified in self.module.calls:  # a stub; the second branch of an `if`; the setter of a property
            return
        text = first_paragraph(ast.get_docstring(node, clean=False))
        if self.owner and node.name == "__init__" and not self.owner.text:
            self.owner.text = text

        environment: dict[str, Reference | None] = {}
        if self.owner and "staticmethod" not in decorators and (positional := [*node.args.posonlyargs, *node.args.args]):
            itself = ("definition", self.prefix)
            of_class = "classmethod" in decorators or node.name in ("__new__", "__init_subclass__", "__class_getitem__")
            environment[positional[0].arg] = itself if of_class else ("instance", itself)
        body = Body(self.parent, environment, self.class_name)
        body.run(node)
        self.module.calls[qualified] = body.calls
        if self.owner:
            for name, reference in body.attributes.items():
                self.owner.members.setdefault(name, reference)
        kind = "property" if decorators & {"property", "cached_property"} else "function"
        returns = annotated(node.returns, {}, self.class_name) or body.returned
        self.module.definitions.setdefault(qualified, Definition(self.module.name, kind, text, returns))
