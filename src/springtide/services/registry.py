"""Which module provides what, and in which order modules are built.

Requirements decide the order: a module is built after every module it requires. Cycles, missing and double
providers are refused with names. Nothing is registered by import: a registry is made of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from springtide.errors import ModuleError
from springtide.services.call import Checked, Method, check_implementation, check_interface
from springtide.services.module import Interface, Module, ModuleContext

__all__ = ["Registry"]

T = TypeVar("T")


class Registry:
    """The modules of one platform and, once built, their services. Raises ModuleError on a faulty list."""

    def __init__(self, modules: Sequence[Module], *, check_calls: bool = False) -> None:
        self._check_calls = check_calls
        self._methods: dict[Any, dict[str, Method]] = {}
        providers: dict[Any, Module] = {}
        names: set[str] = set()
        for module in modules:
            if module.name in names:
                raise ModuleError(f"two modules are named {module.name!r}")
            names.add(module.name)
            self._methods[module.provides] = check_interface(module.name, module.provides)
            other = providers.setdefault(module.provides, module)
            if other is not module:
                raise ModuleError(
                    f"modules {other.name!r} and {module.name!r} both provide {_name(module.provides)}"
                )
        self._providers = providers
        self.modules = _ordered(modules, providers)
        self._made: dict[str, Any] = {}
        self._services: dict[Any, Any] = {}

    def build(self, context: Callable[[Module, Mapping[Any, Any]], ModuleContext]) -> None:
        """Make every implementation, in order. `context` gets the module and the services it requires."""
        for module in self.modules:
            required = {interface: self._services[interface] for interface in module.requires}
            made = module.factory(context(module, required))
            methods = self._methods[module.provides]
            check_implementation(module.name, module.provides, methods, made)
            self._made[module.name] = made
            self._services[module.provides] = (
                Checked(module.name, module.provides, methods, made) if self._check_calls else made
            )

    def service(self, interface: Interface[T]) -> T:
        """The service that provides `interface`: its implementation, in this process."""
        try:
            service: T = self._services[interface]
        except KeyError:
            known = ", ".join(_name(provided) for provided in self._providers) or "none"
            raise ModuleError(f"no module provides {_name(interface)}; provided are: {known}") from None
        return service

    def implementation(self, name: str) -> Any:
        """What module `name`'s factory made; for its own background tasks and lifecycle only."""
        return self._made[name]


def _ordered(modules: Sequence[Module], providers: Mapping[Any, Module]) -> tuple[Module, ...]:
    """Providers before those who require them; otherwise as listed. Depth-first: a cycle shows its path."""
    done: dict[str, Module] = {}
    path: list[str] = []

    def visit(module: Module) -> None:
        if module.name in done:
            return
        if module.name in path:
            cycle = [*path[path.index(module.name) :], module.name]
            raise ModuleError(f"modules require each other in a cycle: {' -> '.join(cycle)}")
        path.append(module.name)
        for interface in module.requires:
            provider = providers.get(interface)
            if provider is None:
                raise ModuleError(
                    f"module {module.name!r} requires {_name(interface)}, which no module provides"
                )
            visit(provider)
        path.pop()
        done[module.name] = module

    for module in modules:
        visit(module)
    return tuple(done.values())


def _name(interface: Any) -> str:
    return getattr(interface, "__qualname__", repr(interface))
