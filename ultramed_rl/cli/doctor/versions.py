"""Python and packages against what pyproject.toml asks for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ultramed_rl.cli.doctor.finding import Finding

_PACKAGE = "ultramed_rl"


def check_python() -> Iterator[Finding]:
    """The interpreter against `requires-python`."""
    wanted = SpecifierSet(distribution(_PACKAGE).metadata["Requires-Python"] or "")
    found = ".".join(str(part) for part in sys.version_info[:3])
    if found in wanted:
        yield Finding("python", "ok", f"{found} at {sys.executable}")
    else:
        fix = "make a new environment with such a Python, as launch/setup.sh does"
        yield Finding("python", "fail", f"{found}; needs {wanted}", fix)


def check_packages(cuda: bool) -> Iterator[Finding]:
    """Each package against its pin, and vLLM's build for this kind of device."""
    wanted = list(requirements("cuda" if cuda else "cpu"))
    wrong = [finding for requirement in wanted for finding in _compare(requirement)]
    if not wrong:
        yield Finding("packages", "ok", f"all {len(wanted)} as pinned")
    yield from wrong


def requirements(extra: str) -> Iterator[Requirement]:
    """What the package depends on, with an extra's part."""
    for line in distribution(_PACKAGE).requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        plain = marker is None or marker.evaluate({"extra": ""})
        if plain or (marker is not None and marker.evaluate({"extra": extra})):
            yield requirement


def _compare(requirement: Requirement) -> Iterator[Finding]:
    bare = f"{requirement.name}{requirement.specifier}"
    fix = f"pip install '{bare}', or launch/setup.sh for all of them"
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        yield Finding("packages", "fail", f"{requirement.name}: not installed; needs {bare}", fix)
        return
    # A local build's +cpu is no other version, and a pre-release that somebody chose is theirs to know.
    if not requirement.specifier.contains(found.partition("+")[0], prereleases=True):
        yield Finding("packages", "fail", f"{requirement.name} {found}; needs {bare}", fix)
