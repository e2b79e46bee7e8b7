"""Resolves references (see `python_calls`) across modules to one canonical name each: the place of definition."""

from __future__ import annotations

import builtins
import operator
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from jaxrec.data.builders.python_calls import Reference
from jaxrec.data.builders.python_modules import Definition, Module, first_paragraph

_BUILTINS = frozenset(dir(builtins))
_BUILTIN_TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and kind not in (object, type)}
_BUILTIN_METHODS = frozenset(name for kind in _BUILTIN_TYPES.values() for name in dir(kind))
_BUILTIN_ERRORS = frozenset(f"builtins.{name}" for name, kind in _BUILTIN_TYPES.items() if issubclass(kind, BaseException))

Entity = tuple[str, str]  # ("module" | "class" | "function" | "instance" | "compiled", qualified name)


def _origin(name: str) -> str:
    """The package that a name belongs to; the standard library counts as one."""
    top = name.partition(".")[0]
    return "python" if top in sys.stdlib_module_names else top


class Names:
    """What names mean across all `modules`.

    `compiled` are the modules without source (written in C) whose functions count under the name by which they are reached.
    """

    def __init__(self, modules: Iterable[Module], compiled: Iterable[str]):
        self.modules = {module.name: module for module in modules}
        self.compiled = frozenset(compiled)
        self.definitions: dict[str, Definition] = {}
        for module in self.modules.values():
            self.definitions.update(module.definitions)
        self._methods: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, definition in self.definitions.items():
            parent, _, last = name.rpartition(".")
            if definition.kind == "function" and parent in self.definitions and last not in _BUILTIN_METHODS:
                self._methods[name.partition(".")[0], last].append(name)
        self._resolved: dict[tuple[str, Reference], Entity | None] = {}
        self._documents: dict[str, str] = {}
        for module in self.modules.values():
            for (place, name), text in module.documents.items():
                if place in self.modules and (entity := self.resolve(place, ("export", name))) and entity[0] == "compiled":
                    self._documents[entity[1]] = text

    def called(self, module: str, reference: Reference) -> str | None:
        """The canonical name of what a call of `reference` in `module` calls; None if that is not known or a builtin."""
        entity = self.resolve(module, reference)
        if entity and entity[0] == "instance":
            entity = self.member(entity, "__call__")
        return entity[1] if entity and entity[0] in ("class", "function", "compiled") and entity[1] not in _BUILTIN_ERRORS else None

    def resolve(self, module: str, reference: Reference | None) -> Entity | None:
        """What `reference` stands for in `module`."""
        if reference is None:
            return None
        key = (module, reference)
        if key not in self._resolved:
            self._resolved[key] = None  # a cycle of imports or attributes means nothing
            self._resolved[key] = self._resolve(module, reference)
        return self._resolved[key]

    def _resolve(self, module: str, reference: Reference) -> Entity | None:
        match reference:
            case ("name", name):
                return self.resolve(module, ("export", name)) or (("compiled", f"builtins.{name}") if name in _BUILTINS else None)
            case ("export", name):
                return self._export(module, name)
            case ("import", name):
                return self._module(name)
            case ("definition", name):
                definition = self.definitions.get(name)
                return definition and ("class" if definition.kind == "class" else "function", name)
            case ("variable", name, value):
                return self.resolve(module, value) or ("function", name)
            case ("attribute", inner, name):
                entity = self.resolve(module, inner)
                return entity and self.member(entity, name)
            case ("result", inner):
                return self._result(self.resolve(module, inner))
            case ("instance", inner):
                entity = self.resolve(module, inner)
                return self._result(entity) if entity and entity[0] != "function" else None
            case ("super", name):
                return ("super", name)
            case ("method", name):
                candidates = self._methods[module.partition(".")[0], name]
                return ("function", candidates[0]) if len(candidates) == 1 else None
        raise ValueError(f"{reference!r} is no reference; python_calls lists the kinds")

    def _export(self, module: str, name: str) -> Entity | None:
        """What the module-level name `name` of `module` stands for."""
        here = self.modules[module]
        binding = here.bindings.get(name)
        if binding == ("attribute", ("import", module), name):  # `from . import name` in a package: its submodule
            return self._module(f"{module}.{name}")
        if binding and (entity := self.resolve(module, binding)):
            return entity
        if binding is None and not name.startswith("_"):
            for star in here.stars:
                if star in self.modules and star != module and (entity := self.resolve(star, ("export", name))):
                    return entity
            if submodule := self._module(f"{module}.{name}"):
                return submodule
            if known := [star for star in here.stars if star in self.compiled]:
                return None if name in _BUILTINS else ("compiled", f"{known[0]}.{name}")
        return None

    def member(self, entity: Entity, name: str) -> Entity | None:
        """What `entity.name` stands for."""
        kind, qualified = entity
        if kind == "compiled":
            return ("compiled", f"{qualified}.{name}")
        if kind == "module":
            return self.resolve(qualified, ("export", name)) or self._module(f"{qualified}.{name}")
        if kind not in ("class", "instance", "super"):
            return None
        if qualified.startswith("builtins."):
            return ("compiled", f"{qualified}.{name}") if hasattr(_BUILTIN_TYPES[qualified.removeprefix("builtins.")], name) else None
        if (found := self._inherited(qualified, name, skip=kind == "super", visited=set())) is None:
            return None
        attribute = self.resolve(*found)
        if attribute and attribute[0] == "function" and kind != "class" and (d := self.definitions.get(attribute[1])) and d.kind == "property":
            return self._result(attribute)
        return attribute

    def _inherited(self, qualified: str, name: str, *, skip: bool, visited: set[str]) -> tuple[str, Reference] | None:
        """The module and reference of a member of the class or of the first base, depth first, that has it."""
        visited.add(qualified)
        definition = self.definitions[qualified]
        if not skip and name in definition.members:
            return definition.module, definition.members[name]
        for base in definition.bases:
            entity = self.resolve(definition.module, base)
            if entity and entity[0] == "class" and entity[1] not in visited and (found := self._inherited(entity[1], name, skip=False, visited=visited)):
                return found
        return None

    def _result(self, entity: Entity | None) -> Entity | None:
        if entity and entity[0] == "class":
            return ("instance", entity[1])
        if entity and entity[0] == "compiled" and entity[1].removeprefix("builtins.") in _BUILTIN_TYPES:
            return ("instance", entity[1])
        if entity and entity[1].endswith(".array_namespace"):  # what the array API standard gives for numpy's arrays
            return self._module("numpy")
        definition = self.definitions.get(entity[1]) if entity and entity[0] == "function" else None
        return definition and self.resolve(definition.module, definition.returns)

    def _module(self, name: str) -> Entity | None:
        if name in self.modules:
            return ("module", name)
        return ("compiled", name) if name in self.compiled else None

    def spelling(self, module: str, reference: Reference) -> str | None:
        """The dotted name that the code writes, import aliases undone: `np.dot` is `numpy.dot`; None for what is not imported."""
        match reference:
            case ("import", name):
                return name
            case ("attribute", inner, name):
                prefix = self.spelling(module, inner)
                return prefix and f"{prefix}.{name}"
            case ("name", name):
                binding = self.modules[module].bindings.get(name)
                return self.spelling(module, binding) if binding and binding[0] in ("import", "attribute") else None
        return None

    def text(self, name: str) -> str:
        """The first paragraph of the docstring of what `name` canonically names; "" where its source has none."""
        if name in self._documents:
            return self._documents[name]
        if name.startswith("builtins."):
            return first_paragraph(operator.attrgetter(name.removeprefix("builtins."))(builtins).__doc__)
        return self.definitions[name].text if name in self.definitions else ""

    def titles(self, names: Iterable[str], spellings: Mapping[str, Counter[str]]) -> dict[str, str]:
        """What to call each canonical name: the public name most often written, else the shortest that is exported, else itself.

        A name is public if no part starts with an underscore. Methods take their class's title. `spellings` counts, by canonical
        name, how often each dotted name is written.
        """
        exports: dict[str, set[str]] = defaultdict(set)
        for module in self.modules.values():
            starred = [self.modules[star] for star in module.stars if star in self.modules]
            offered = module.exports.union(*(star.exports or star.defined() for star in starred))
            for name in offered:
                entity = self.resolve(module.name, ("export", name))
                if entity and entity[0] in ("class", "function", "compiled"):
                    exports[entity[1]].add(f"{module.name}.{name}")

        def title(name: str) -> str:
            parent, _, last = name.rpartition(".")
            if parent in self.definitions:
                return f"{title(parent)}.{last}"
            if parent.partition(".")[0] == "builtins":
                return name.removeprefix("builtins.")
            written = spellings.get(name, Counter())
            candidates = [c for c in {name, *exports[name], *written} if _origin(c) == _origin(name) and not any(p.startswith("_") for p in c.split("."))]
            return min(candidates, key=lambda c: (-written[c], c.count("."), c != name, len(c), c), default=name)

        return {name: title(name) for name in names}
