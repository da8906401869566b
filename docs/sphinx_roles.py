"""Lets the site show docstrings whose roles, such as those for classes and methods, are Sphinx's.

mkdocs.yml has Griffe, which reads the docstrings, use it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["SphinxRoles"]

ROLE = re.compile(r":(attr|class|data|func|meth|mod):`~?([^`]+)`")


class SphinxRoles(griffe.Extension):
    """Makes code of a role, and a link to the reference where it is a public name."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite the docstrings of a package once it is loaded."""
        public = {str(getattr(name, "name", name)) for name in pkg.exports or ()}

        def as_markdown(role: re.Match[str]) -> str:
            name = role[2].removeprefix(f"{pkg.name}.")
            is_link = role[1] in ("class", "func") and name in public
            return f"[`{name}`][{pkg.name}.{name}]" if is_link else f"`{name}`"

        for each in _objects_in(pkg):
            if each.docstring is not None:
                each.docstring.value = ROLE.sub(as_markdown, each.docstring.value)


def _objects_in(scope: griffe.Object) -> list[griffe.Object]:
    """It, and all that it defines."""
    found = [scope]
    for member in scope.members.values():
        if not member.is_alias:
            found += _objects_in(member)
    return found
