"""Modules, and the typed services through which they talk to each other."""

from springtide.services.call import raises
from springtide.services.module import Background, Interface, Module, ModuleContext
from springtide.services.registry import Registry

__all__ = ["Background", "Interface", "Module", "ModuleContext", "Registry", "raises"]
