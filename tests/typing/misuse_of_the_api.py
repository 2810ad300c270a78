"""What mypy --strict must refuse: exactly the lines marked so."""

from __future__ import annotations

from typing import Protocol

from springtide.cache.behind import WriteBehind
from springtide.identity.passwords import Passwords
from springtide.lifecycle import Group, Periodic
from springtide.platform import Platform
from springtide.services import Module, ModuleContext
from springtide.web.caching import HttpPolicy, cacheable


class Greeter(Protocol):
    async def greet(self, name: str) -> str: ...


async def misuse(platform: Platform, context: ModuleContext) -> None:
    text: int = await platform.service(Greeter).greet("you")  # fault
    await platform.service(Greeter).greet(7)  # fault
    await context.service(Greeter).wave()  # fault
    Passwords(2)  # fault
    Group("all", [object()])  # fault
    Periodic("tick", every=1.0, body=7)  # fault
    Module("greeter", provides=Greeter, factory=lambda context: None)  # fault
    print(text)


async def changes(views: WriteBehind[int]) -> None:
    await views.put(7, "one")  # fault
    await views.put(7.5, 1)  # fault
    cacheable(30)  # fault
    HttpPolicy(True)  # fault
