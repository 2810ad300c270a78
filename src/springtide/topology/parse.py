"""Read springtide.toml: text -> Topology, or one TopologyError with every fault and its line.

    TOML -> plain tables -> laid over the stage's preset -> typed structures -> rules between keys

A value that breaks its rule is reported and replaced by a default, so that the rest can be examined too;
faults that would only follow from such a replacement are left out.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from springtide.errors import ConfigurationError, TopologyError, TopologyFault
from springtide.topology.keys import Field, Rule, broken, described, redacted_entry, type_sentence
from springtide.topology.locate import Path as KeyPath
from springtide.topology.locate import locate
from springtide.topology.plain import removed_from, to_plain
from springtide.topology.spec import Topology
from springtide.topology.stages import stage_topology
from springtide.topology.suggest import nearest

__all__ = ["load", "loads"]

_WHERE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_PLACEHOLDERS: tuple[object, ...] = ("unknown", "unknown:unknown", ("unknown",), {"unknown": 0})
_LARGEST = 2**63
_WHOLE = frozenset({("stage",), ("nodes",), ("clusters",)})  # without these no name can be looked up
_NAMED = frozenset({"programs", "secrets"})  # with faults in these, a name may be unknown because of them
_NAMES_PROGRAMS = re.compile("unknown placeholder|must begin with one of")


def load(path: Path) -> Topology:
    """The topology of the file at `path`.

    Raises TopologyError with every fault; ConfigurationError when the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no file {path}: `springtide new` writes one") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        rule = f"the file must be UTF-8; byte {data[error.start]:#04x} is not"
        raise TopologyError(str(path), [TopologyFault(line, "syntax", None, rule)]) from error
    return loads(text, source=path.absolute())


def loads(text: str, *, source: Path | None = None) -> Topology:
    """The topology written in `text`; `source` names the file in errors and anchors the import path.

    Raises TopologyError with every fault, in the order of their lines.
    """
    name = source.name if source is not None else "springtide.toml"
    raw = _tables(text, name)
    reader = _Reader(raw)
    topology = reader.topology(source)
    if reader.faults:
        lines = locate(text.replace("\r\n", "\n"))
        located = [_located(path, fault, lines) for path, fault in reader.faults]
        raise TopologyError(name, sorted(located, key=lambda fault: fault.line or 0))
    return cast(Topology, topology)  # no faults, so it was made


def _tables(text: str, name: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        fault = TopologyFault(None, "syntax", None, "brackets are nested too deeply")
        raise TopologyError(name, [fault]) from error
    except ValueError as error:  # TOMLDecodeError, and what int() and datetime refuse
        message = str(error)
        where = _WHERE.search(message)
        line, column = None, ""
        if where is not None:
            message = message[: where.start()]
            last = text.split("\n")
            line = int(where[1]) if where[1] else len(last)
            column = f"column {where[2] or len(last[-1]) + 1}: "
        raise TopologyError(name, [TopologyFault(line, "syntax", None, column + message)]) from error


def _located(path: KeyPath, fault: TopologyFault, lines: Mapping[KeyPath, int]) -> TopologyFault:
    """`fault` with the line of its key, or of the nearest table around it that the file has."""
    known = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    return TopologyFault(known, fault.key, fault.value, fault.rule)


class _Reader:
    """Collects `faults` with the path of their keys while it makes structures out of plain tables."""

    def __init__(self, raw: dict[str, object]) -> None:
        self._raw = raw
        self.faults: list[tuple[KeyPath, TopologyFault]] = []

    def topology(self, source: Path | None) -> Topology | None:
        stage = self._raw.get("stage")
        plain: dict[str, object] = {}
        if isinstance(stage, int) and not isinstance(stage, bool) and 1 <= stage <= 7:
            plain = to_plain(stage_topology(stage))
            for key in ("name", "app"):
                del plain[key]  # every file gives its own
        self._lay_over(plain)
        values = self._values(Topology, plain, ())
        try:
            made = Topology(**values, source=source)  # type: ignore[arg-type]  # checked by _values
        except TopologyError as error:
            bad = [path for path, _ in self.faults]
            for fault in error.faults:
                path = tuple(int(part) if part.isdigit() else part for part in fault.key.split("."))
                follows = any(path[: len(known)] == known or known[: len(path)] == path for known in bad)
                lost = "must name a" in fault.rule and not _WHOLE.isdisjoint(bad)
                if _NAMES_PROGRAMS.match(fault.rule):
                    lost = any(known[0] in _NAMED for known in bad)
                replaced = any(len(known) > 1 and _mentions(fault.rule, known) for known in bad)
                if not (follows or lost or replaced):
                    named = _dotted(part for part in path if isinstance(part, str))
                    self.faults.append((path, TopologyFault(None, named, fault.value, fault.rule)))
            return None
        return made

    def _lay_over(self, plain: dict[str, object]) -> None:
        """The file's keys over the preset's: tables are merged, `x = false` takes a part out."""
        for field in described(Topology):
            given = self._raw.get(field.name)
            if field.table is not None and field.optional and given is False:
                plain.pop(field.name, None)
                del self._raw[field.name]
            elif field.tables is not None and isinstance(given, dict):
                present = plain.get(field.name, {})
                for name in [name for name, value in given.items() if value is False]:
                    if not removed_from(present, name):
                        rule = "there is nothing to take out: the stage has no such part"
                        self._add((field.name, name), None, rule)
                    del given[name]
        self._merge(plain, self._raw, ())

    def _merge(self, below: dict[str, object], above: Mapping[str, object], path: tuple[str, ...]) -> None:
        for name, value in above.items():
            present = below.get(name)
            if not isinstance(present, dict):
                below[name] = value
            elif isinstance(value, dict):
                self._merge(present, value, (*path, name))
            else:
                self._add((*path, name), value, "must be a table")

    def _add(self, path: tuple[str, ...], value: object, rule: str) -> None:
        shown = redacted_entry("url" if path[0] == "nodes" else path[-1], value)
        self.faults.append((path, TopologyFault(None, _dotted(path), shown, rule)))

    def _add_elements(self, path: tuple[str, ...], elements: tuple[object, ...], rule: Rule) -> None:
        """Every element that breaks `rule` or repeats another, each with its own line."""
        for at, element in enumerate(elements):
            sentence = "must not be listed twice" if element in elements[:at] else rule.sentence
            if element in elements[:at] or not rule.holds(element):
                fault = TopologyFault(None, _dotted(path), redacted_entry(path[-1], element), sentence)
                self.faults.append(((*path, at), fault))

    def _add_entries(
        self, path: tuple[str, ...], given: Mapping[str, object], field: Field, rule: Rule
    ) -> dict[str, object]:
        """Every entry whose name or value breaks its rule, each with its own line; returns the others."""
        good: dict[str, object] = {}
        for name, value in given.items():
            if rule.name is not None and not rule.name.holds(name):
                self._add((*path, name), None, f"a name {rule.name.sentence}")
            elif type(value) is not field.entries:
                self._add((*path, name), value, type_sentence(Field(name=name, scalar=field.entries)))
            elif rule.element is not None and not rule.element.holds(value):
                self._add((*path, name), value, rule.element.sentence)
            else:
                good[name] = value
        return good

    def _values(
        self, structure: type, plain: Mapping[str, object], path: tuple[str, ...]
    ) -> dict[str, object]:
        """Arguments that construct `structure`; what breaks a rule is reported and replaced."""
        known = {field.name: field for field in described(structure)}
        for name in plain:
            if name not in known:
                guess = nearest(name, known)
                hint = f"; did you mean {guess}?" if guess else f"; known here: {', '.join(known)}"
                self._add((*path, name), None, "unknown key" + hint)
        values: dict[str, object] = {}
        for name, field in known.items():
            here = (*path, name)
            if name not in plain:
                if field.required:
                    self._add(here, None, "is required")
                    values[name] = _placeholder(field)
            elif field.table is not None:
                values[name] = self._structure(field.table, plain[name], here)
            elif field.tables is not None:
                values[name] = self._structures(field.tables, plain[name], here)
            else:
                values[name] = self._scalar(field, plain[name], here)
        return values

    def _structure(self, structure: type, plain: object, path: tuple[str, ...]) -> object:
        if not isinstance(plain, dict):
            self._add(path, plain, "must be a table")
            plain = None
        arguments = self._values(structure, plain, path) if plain is not None else _placeholders(structure)
        if "name" in structure.__dataclass_fields__:  # type: ignore[attr-defined]  # a dataclass
            arguments["name"] = path[-1]
        return structure(**arguments)

    def _structures(self, structure: type, plain: object, path: tuple[str, ...]) -> dict[str, object]:
        if not isinstance(plain, dict):
            self._add(path, plain, "must be a table")
            return {}
        made = {}
        for name, item in plain.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,62}", name):
                self._add(
                    (*path, name), None, "a name must be letters, digits, - and _, starting with a letter"
                )
            made[name] = self._structure(structure, item, (*path, name))
        return made

    def _scalar(self, field: Field, value: object, path: tuple[str, ...]) -> object:
        if field.listed and isinstance(value, list):
            value = tuple(value)
        huge = isinstance(value, int) and not -_LARGEST <= value < _LARGEST
        sentence = "must fit into 64 bits" if huge else broken(field, value)
        if sentence is None:
            return float(cast(float, value)) if field.scalar is float else value
        if field.name == "kind" and isinstance(value, str) and (guess := nearest(value, _words(sentence))):
            sentence = f"{sentence}; did you mean {guess}?"
        rule = field.key.rule if field.key else None
        if field.entries and rule and isinstance(value, dict) and value:
            good = self._add_entries(path, value, field, rule)
            return good if broken(field, good) is None else _placeholder(field)
        if isinstance(value, tuple) and rule and rule.element and sentence == rule.sentence:
            self._add_elements(path, value, rule.element)
        else:
            self._add(path, list(value) if isinstance(value, tuple) else value, sentence)
        return _placeholder(field) if field.required else field.default


def _words(sentence: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", sentence.partition("one of")[2])


def _mentions(rule: str, path: KeyPath) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(_dotted(path))}(?![\w.-])", rule) is not None


def _placeholder(field: Field) -> object:
    """A value that keeps the field's rule, to go on examining the rest."""
    return next(value for value in _PLACEHOLDERS if broken(field, value) is None)


def _placeholders(structure: type) -> dict[str, object]:
    return {field.name: _placeholder(field) for field in described(structure) if field.required}


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))
