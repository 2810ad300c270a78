"""What may cross from one module to another, checked when the platform is built.

In one process a call is a plain await on the implementation: nothing is wrapped, nothing is measured. So
that a module can move to a process of its own without a change, its interface is held to what a network call
could carry: async methods, named parameters, and values that msgspec encodes and decodes without help. A
method may raise what `@raises` names on it, and any SpringtideError; `Checked` (platform option
`check_calls`, for tests) makes every call as a network would.

What a request has seen of the databases goes with a call and comes back with what the call saw and wrote,
also with an error: in one process because the context is shared, over a network as text both ways.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import msgspec

from springtide.context import CausalityToken, activate, current
from springtide.errors import ModuleError, SpringtideError

__all__ = ["Checked", "Method", "check_implementation", "check_interface", "raises"]

F = TypeVar("F", bound=Callable[..., Any])

_RAISES = "__springtide_raises__"


def raises(*errors: type[Exception]) -> Callable[[F], F]:
    """Declare, on a method of an interface, which errors of the module its caller may see."""

    def mark(method: F) -> F:
        setattr(method, _RAISES, errors)
        return method

    return mark


class Method(msgspec.Struct, frozen=True):
    """One method of an interface, resolved: parameter name -> type, the result's type, declared errors."""

    name: str
    parameters: dict[str, Any]
    result: Any
    errors: tuple[type[Exception], ...]
    signature: inspect.Signature


def check_interface(module: str, interface: Any) -> dict[str, Method]:
    """The methods of `interface`, all fit to be called over a network. Raises ModuleError otherwise."""
    if not (isinstance(interface, type) and getattr(interface, "_is_protocol", False)):
        raise ModuleError(f"module {module!r}: provides must be a typing.Protocol class, got {interface!r}")
    methods: dict[str, Method] = {}
    for owner in reversed(interface.__mro__):
        if owner in (object, Protocol, typing.Generic):
            continue
        for name in inspect.get_annotations(owner):
            if not name.startswith("_"):
                raise ModuleError(f"{_where(module, interface, name)}an interface has methods only")
        for name, member in vars(owner).items():
            if not name.startswith("_"):
                methods[name] = _check_method(_where(module, interface, name), name, member)
    if not methods:
        raise ModuleError(f"module {module!r}: interface {interface.__name__} must have a public method")
    return methods


def _check_method(where: str, name: str, member: Any) -> Method:
    if not inspect.iscoroutinefunction(member):
        raise ModuleError(f"{where}must be an `async def` method, got {member!r}")
    try:
        hints = typing.get_type_hints(member, include_extras=True)
    except NameError as error:
        raise ModuleError(f"{where}annotations must be importable at run time: {error}") from error
    signature = inspect.signature(member)
    parameters: dict[str, Any] = {}
    for parameter in list(signature.parameters.values())[1:]:
        spot = f"{where}parameter {parameter.name!r}: "
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ModuleError(f"{spot}must be a named parameter, got {parameter}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ModuleError(f"{spot}must be usable as a keyword")
        if parameter.name not in hints:
            raise ModuleError(f"{spot}must have a type")
        parameters[parameter.name] = _check_type(spot, hints[parameter.name])
    if "return" not in hints:
        raise ModuleError(f"{where}result: must have a type")
    result = _check_type(f"{where}result: ", hints["return"])
    errors: tuple[Any, ...] = getattr(member, _RAISES, ())
    for raised in errors:
        if not (isinstance(raised, type) and issubclass(raised, Exception)):
            raise ModuleError(f"{where}raises: must be an exception class, got {raised!r}")
        if "<locals>" in raised.__qualname__:
            raise ModuleError(f"{where}raises: must be importable by its name, got {raised!r}")
    return Method(name, parameters, result, errors, signature)


def _check_type(spot: str, annotation: Any) -> Any:
    try:
        fault = _fault(msgspec.inspect.type_info(annotation), set())
    except (TypeError, NameError) as error:
        raise ModuleError(f"{spot}msgspec cannot encode and decode {annotation!r}: {error}") from error
    if fault is not None:
        raise ModuleError(f"{spot}msgspec cannot encode and decode {annotation!r}: {fault}")
    return annotation


def _fault(info: Any, seen: set[Any]) -> str | None:
    """The first part of a type that could not cross a network, walking into fields and items."""
    if isinstance(info, msgspec.inspect.CustomType):
        return f"{info.cls!r} is no type it knows"
    if isinstance(info, msgspec.inspect.AnyType):
        return "Any says nothing about the value"
    if isinstance(info, msgspec.inspect.RawType | msgspec.inspect.ExtType):
        return f"{type(info).__name__} is bound to one encoding"
    cls = getattr(info, "cls", None)
    if cls is not None:
        if cls in seen:
            return None
        seen.add(cls)
    for name in info.__struct_fields__:
        value = getattr(info, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, msgspec.inspect.Field):
                part = part.type
            if isinstance(part, msgspec.inspect.Type) and (fault := _fault(part, seen)) is not None:
                return fault
    return None


def check_implementation(module: str, interface: Any, methods: dict[str, Method], made: Any) -> None:
    """`made` has every method of `interface`, callable as declared. Raises ModuleError otherwise."""
    cls = type(made)
    for name, method in methods.items():
        where = f"module {module!r}, {cls.__qualname__}.{name}: "
        own = getattr(made, name, None)
        if own is None:
            raise ModuleError(f"{where}{interface.__name__} declares it, the implementation lacks it")
        if not inspect.iscoroutinefunction(own):
            raise ModuleError(f"{where}must be an `async def` method, got {own!r}")
        declared = dict(list(method.signature.parameters.items())[1:])
        offered = inspect.signature(own).parameters
        for parameter in declared.values():
            theirs = offered.get(parameter.name)
            spot = f"{where}parameter {parameter.name!r}: "
            if theirs is None or theirs.kind in (theirs.VAR_POSITIONAL, theirs.VAR_KEYWORD):
                raise ModuleError(f"{spot}{interface.__name__} declares it, the implementation lacks it")
            if theirs.kind is theirs.POSITIONAL_ONLY or (
                theirs.kind is theirs.KEYWORD_ONLY and parameter.kind is not parameter.KEYWORD_ONLY
            ):
                raise ModuleError(
                    f"{spot}must be {parameter.kind.description}, not {theirs.kind.description}"
                )
            if parameter.default is not parameter.empty and theirs.default is theirs.empty:
                raise ModuleError(f"{spot}must have a default, as {interface.__name__} declares")
        for theirs in offered.values():
            extra = theirs.name not in declared and theirs.kind not in (
                theirs.VAR_POSITIONAL,
                theirs.VAR_KEYWORD,
            )
            if extra and theirs.default is theirs.empty:
                raise ModuleError(
                    f"{where}parameter {theirs.name!r}: {interface.__name__} does not declare it,"
                    " so it must have a default"
                )
        order = [n for n, p in declared.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        theirs_order = [n for n, p in offered.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        if theirs_order[: len(order)] != order:
            raise ModuleError(f"{where}parameters must come in the order {order}, got {theirs_order}")


class Checked:
    """A service called as over a network: every value is encoded and decoded, errors are held to `@raises`.

    Finds, in tests, what works only in one process: shared mutable values, values that break their
    annotation, undeclared errors. Raises ModuleError from the call.
    """

    def __init__(self, module: str, interface: Any, methods: dict[str, Method], made: Any) -> None:
        for name, method in methods.items():
            where = _where(module, interface, name)
            setattr(self, name, _checked(where, method, getattr(made, name)))


def _checked(where: str, method: Method, target: Callable[..., Any]) -> Callable[..., Any]:
    signature = method.signature.replace(parameters=list(method.signature.parameters.values())[1:])

    declared: tuple[type[Exception], ...] = (SpringtideError, *method.errors)

    async def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        sent = {
            name: _carry(f"{where}parameter {name!r}: ", value, method.parameters[name])
            for name, value in bound.arguments.items()
        }
        try:
            with _as_remote():
                answer = await target(**sent)
        except declared:
            raise
        except Exception as error:
            raise ModuleError(f"{where}raised {error!r}, which it does not declare by @raises") from error
        return _carry(f"{where}result: ", answer, method.result)

    return call


@contextmanager
def _as_remote() -> Iterator[None]:
    """The callee's context is its own; its causality token goes there and comes back as text."""
    caller = current()
    if caller is None:
        yield
        return
    sent, version = CausalityToken.decode(caller.causality.encode()), caller.causality.version
    with activate(replace(caller, causality=sent)) as callee:
        try:
            yield
        finally:
            back = CausalityToken.decode(callee.causality.encode())
            back.written = callee.causality.written
            caller.granted = callee.granted
            caller.settled = max(caller.settled, callee.settled)
            if callee.recall is None:
                caller.recall = None  # it has been merged into the token
            caller.causality.succeed(back, version)


def _carry(spot: str, value: Any, annotation: Any) -> Any:
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=annotation)
    except (TypeError, msgspec.MsgspecError) as error:
        raise ModuleError(f"{spot}{value!r} does not fit {annotation!r}: {error}") from error


def _where(module: str, interface: Any, name: str) -> str:
    return f"module {module!r}, {interface.__name__}.{name}: "
