"""Modules, interfaces and the registry: every broken boundary is refused with names."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from springtide.clock import SystemClock
from springtide.context import CausalityToken, Position, RequestContext, activate, current
from springtide.errors import AlreadyReserved, ModuleError
from springtide.services import Background, Module, ModuleContext, Registry, raises
from springtide.signals import NullSink


class User(msgspec.Struct):
    id: int
    names: list[str] = []
    since: datetime.datetime | None = None
    friend: User | None = None


class Gone(Exception):
    """The user is gone."""


class Users(Protocol):
    @raises(Gone)
    async def get(self, id: int, *, deep: bool = False) -> User | None: ...

    async def put(self, user: User) -> dict[int, User]: ...


class Content(Protocol):
    async def title(self, author: int) -> str: ...


class Search(Protocol):
    async def find(self, text: str) -> list[int]: ...


class UserService:
    def __init__(self) -> None:
        self.kept: dict[int, User] = {}

    async def get(self, id: int, *, deep: bool = False) -> User | None:
        if id == 404:
            raise Gone
        if id == 409:
            raise AlreadyReserved("id", "409")
        if id == 500:
            raise KeyError("oops")
        if id == 7:
            return "not a user"  # type: ignore[return-value]  # a fault that Checked must find
        return self.kept.get(id)

    async def put(self, user: User) -> dict[int, User]:
        self.kept[user.id] = user
        return self.kept


class ContentService:
    def __init__(self, users: Users) -> None:
        self._users = users

    async def title(self, author: int) -> str:
        user = await self._users.get(author)
        return "nobody" if user is None else user.names[0]


class SearchService:
    async def find(self, text: str) -> list[int]:
        return []


def module(name: str, provides: Any, factory: Callable[[ModuleContext], Any], **options: Any) -> Module:
    return Module(name, migrations=None, provides=provides, factory=factory, **options)


USERS = module("users", Users, lambda context: UserService())
CONTENT = module(
    "content", Content, lambda context: ContentService(context.service(Users)), requires=(Users,)
)


def context_for(module: Module, services: Mapping[Any, Any]) -> ModuleContext:
    return ModuleContext(module.name, clock=SystemClock(), sink=NullSink(), services=services)


def built(*modules: Module, check_calls: bool = False) -> Registry:
    registry = Registry(modules, check_calls=check_calls)
    registry.build(context_for)
    return registry


async def test_modules_are_built_after_what_they_require() -> None:
    """The order of the list does not matter; a call is a call of the implementation itself."""
    registry = built(CONTENT, USERS)
    assert [module.name for module in registry.modules] == ["users", "content"]
    assert registry.service(Users) is registry.implementation("users")
    await registry.service(Users).put(User(1, ["Ann"]))
    assert await registry.service(Content).title(author=1) == "Ann"


def test_a_cycle_is_shown_as_a_path() -> None:
    """users -> content -> users."""
    users = module("users", Users, lambda context: UserService(), requires=(Content,))
    with pytest.raises(ModuleError, match="cycle: content -> users -> content"):
        Registry([CONTENT, users])


def test_a_missing_provider_is_named() -> None:
    """Who requires what."""
    with pytest.raises(ModuleError, match="module 'content' requires Users, which no module provides"):
        Registry([CONTENT])
    with pytest.raises(ModuleError, match="no module provides Search; provided are: Users"):
        built(USERS).service(Search)


def test_two_providers_and_two_names_are_refused() -> None:
    """Each interface has one provider, each name one module."""
    with pytest.raises(ModuleError, match="'users' and 'people' both provide Users"):
        Registry([USERS, module("people", Users, lambda context: UserService())])
    with pytest.raises(ModuleError, match="two modules are named 'users'"):
        Registry([USERS, module("users", Search, lambda context: SearchService())])


def test_a_module_gets_only_what_it_requires() -> None:
    """An undeclared dependency is refused when the module is built."""
    hidden = module("content", Content, lambda context: ContentService(context.service(Users)))
    with pytest.raises(ModuleError, match="module 'content' asks for Users, which is not among its requires"):
        built(USERS, hidden)


def test_a_module_without_migrations_has_no_database() -> None:
    """And no way to anybody else's."""
    with pytest.raises(ModuleError, match="module 'search' declares no migrations"):
        built(module("search", Search, lambda context: context.db))


@pytest.mark.parametrize("name", ["", "Users", "1st", "a-b", "public", "springtide", "pg_users", "a" * 49])
def test_a_module_name_is_a_schema_name(name: str) -> None:
    """It becomes a PostgreSQL schema; the message shows the value."""
    with pytest.raises(ModuleError, match=repr(name)):
        module(name, Users, lambda context: UserService())


def test_background_work_is_checked_when_declared() -> None:
    """Names, periods and functions."""

    async def sweep(made: Any) -> None: ...

    with pytest.raises(ModuleError, match="'sweep': every must be > 0 seconds, got 0"):
        Background(name="sweep", every=0, method=sweep)
    with pytest.raises(ModuleError, match="'sweep': method must be a function"):
        Background(name="sweep", every=1, method="sweep")  # type: ignore[arg-type]  # the fault under test
    task = Background(name="sweep", every=1, method=sweep)
    with pytest.raises(ModuleError, match="'sweep' is declared twice"):
        module("users", Users, lambda context: UserService(), background=[task, task])


# --- what may be in an interface


class NotAsync(Protocol):
    def get(self, id: int) -> int: ...


class Generates(Protocol):
    async def get(self, id: int) -> Any:
        yield id


class Attribute(Protocol):
    name: str


class Variadic(Protocol):
    async def get(self, *ids: int) -> int: ...


class Keywords(Protocol):
    async def get(self, **ids: int) -> int: ...


class PositionalOnly(Protocol):
    async def get(self, id: int, /) -> int: ...


class Untyped(Protocol):
    async def get(self, id) -> int: ...  # type: ignore[no-untyped-def]  # the fault under test


class NoResult(Protocol):
    async def get(self, id: int): ...  # type: ignore[no-untyped-def]  # the fault under test


class TakesAny(Protocol):
    async def get(self, id: dict[str, Any]) -> int: ...


class TakesPath(Protocol):
    async def get(self, id: list[Path]) -> int: ...


class GivesCallback(Protocol):
    async def get(self, id: int) -> Callable[[], int]: ...


class Deep(msgspec.Struct):
    inner: list[tuple[int, object]]


class TakesDeep(Protocol):
    async def get(self, id: Deep | None) -> int: ...


class Unresolved(Protocol):
    async def get(self, id: Nowhere) -> int: ...  # type: ignore[name-defined]  # noqa: F821 - the fault under test


class Empty(Protocol):
    async def _get(self) -> int: ...


class NoProtocol:
    async def get(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("interface", "says"),
    [
        (NotAsync, "NotAsync.get: must be an `async def`"),
        (Generates, "Generates.get: must be an `async def`"),
        (Attribute, "Attribute.name: an interface has methods only"),
        (Variadic, "Variadic.get: parameter 'ids': must be a named parameter"),
        (Keywords, "Keywords.get: parameter 'ids': must be a named parameter"),
        (PositionalOnly, "PositionalOnly.get: parameter 'id': must be usable as a keyword"),
        (Untyped, "Untyped.get: parameter 'id': must have a type"),
        (NoResult, "NoResult.get: result: must have a type"),
        (TakesAny, "parameter 'id': msgspec cannot encode.*Any says nothing"),
        (TakesPath, "parameter 'id': msgspec cannot encode.*Path"),
        (GivesCallback, "GivesCallback.get: result: msgspec cannot encode"),
        (TakesDeep, "parameter 'id': msgspec cannot encode.*object"),
        (Unresolved, "annotations must be importable at run time: name 'Nowhere'"),
        (Empty, "interface Empty must have a public method"),
        (NoProtocol, "provides must be a typing.Protocol class"),
    ],
)
def test_an_interface_holds_only_what_a_network_could_carry(interface: Any, says: str) -> None:
    """The message names module, method, parameter, type and rule."""
    with pytest.raises(ModuleError, match=says) as caught:
        Registry([module("odd", interface, lambda context: None)])
    assert "module 'odd'" in str(caught.value)


def test_raises_takes_importable_exceptions() -> None:
    """A remote caller must be able to raise it."""

    class Local(Exception): ...

    class Odd(Protocol):
        @raises(Local)
        async def get(self) -> int: ...

    class Odder(Protocol):
        @raises("Gone")  # type: ignore[arg-type]  # the fault under test
        async def get(self) -> int: ...

    with pytest.raises(ModuleError, match="must be importable by its name"):
        Registry([module("odd", Odd, lambda context: None)])
    with pytest.raises(ModuleError, match="must be an exception class, got 'Gone'"):
        Registry([module("odd", Odder, lambda context: None)])


# --- what an implementation must be


class Lacks:
    async def put(self, user: User) -> dict[int, User]:
        return {}


class Renames(UserService):
    async def get(self, key: int, *, deep: bool = False) -> User | None:  # type: ignore[override]
        return None


class Blocking(UserService):
    def get(self, id: int, *, deep: bool = False) -> User | None:  # type: ignore[override]
        return None


class Demands(UserService):
    async def get(self, id: int, more: int, *, deep: bool = False) -> User | None:  # type: ignore[override]
        return None


class NoDefault(UserService):
    async def get(self, id: int, *, deep: bool) -> User | None:  # type: ignore[override]
        return None


class KeywordOnly(UserService):
    async def get(self, *, id: int, deep: bool = False) -> User | None:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (Lacks, "Lacks.get: Users declares it, the implementation lacks it"),
        (Renames, "Renames.get: parameter 'id': Users declares it"),
        (Blocking, "Blocking.get: must be an `async def`"),
        (Demands, "Demands.get: parameter 'more': Users does not declare it"),
        (NoDefault, "NoDefault.get: parameter 'deep': must have a default"),
        (KeywordOnly, "KeywordOnly.get: parameter 'id': must be positional or keyword"),
    ],
)
def test_an_implementation_is_callable_as_declared(made: type, says: str) -> None:
    """Every method, with compatible parameters."""
    with pytest.raises(ModuleError, match=f"module 'users', {says}"):
        built(module("users", Users, lambda context: made()))


# --- calls as over a network


async def test_a_checked_call_shares_no_values() -> None:
    """What the caller changes afterwards does not change the service's own."""
    users = built(USERS, check_calls=True).service(Users)
    ann = User(1, ["Ann"])
    await users.put(ann)
    ann.names.append("changed")
    kept = await users.get(1)
    assert kept is not None and kept.names == ["Ann"]


async def test_a_checked_call_refuses_values_that_break_their_types() -> None:
    """Parameters and results, by name."""
    users = built(USERS, check_calls=True).service(Users)
    with pytest.raises(ModuleError, match=r"Users\.get: parameter 'id': 'one' does not fit"):
        await users.get("one")  # type: ignore[arg-type]  # the fault under test
    with pytest.raises(ModuleError, match=r"Users\.get: result: 'not a user' does not fit"):
        await users.get(7)


async def test_a_checked_call_holds_errors_to_their_declaration() -> None:
    """Declared ones and Springtide's own pass; others are a fault of the module."""
    users = built(USERS, check_calls=True).service(Users)
    with pytest.raises(Gone):
        await users.get(404)
    with pytest.raises(AlreadyReserved):
        await users.get(409)
    with pytest.raises(ModuleError, match=r"Users\.get: raised KeyError\('oops'\)"):
        await users.get(500)


async def test_a_checked_call_takes_along_and_brings_back_what_was_seen() -> None:
    """As text, so the callee's context is its own; also with an error; what it covered is covered."""

    class Remote(UserService):
        async def get(self, id: int, *, deep: bool = False) -> User | None:
            context = current()
            assert context is not None and context is not caller
            assert context.causality == before
            context.causality.wrote("main", Position(1, 20))
            context.deadline = None  # stays on its side
            return await super().get(id)

    users = built(module("users", Users, lambda context: Remote()), check_calls=True).service(Users)
    for id, raised in [(1, None), (404, Gone)]:
        token = CausalityToken({"main": Position(1, 10), "other": Position(1, 1)}, {"main": "0123456789ab"})
        before = CausalityToken.decode(token.encode())
        caller = RequestContext(deadline=5.0, causality=token)
        with activate(caller), pytest.raises(raised) if raised else nullcontext():
            await users.get(id)
        assert token.positions == {"main": Position(1, 20), "other": Position(1, 1)}
        assert not token.witnesses and token.written and caller.deadline == 5.0


async def test_checked_calls_at_once_lose_nothing_of_each_other() -> None:
    """Both come back, in whatever order."""
    arrived = asyncio.Barrier(2)

    class Remote(UserService):
        async def get(self, id: int, *, deep: bool = False) -> User | None:
            await arrived.wait()
            context = current()
            assert context is not None
            context.causality.wrote(f"cluster-{id}", Position(1, id))
            return None

    users = built(module("users", Users, lambda context: Remote()), check_calls=True).service(Users)
    with activate(RequestContext()) as caller:
        await asyncio.gather(users.get(1), users.get(2))
    assert caller.causality.positions == {"cluster-1": Position(1, 1), "cluster-2": Position(1, 2)}
