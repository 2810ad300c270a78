"""Reading a folder of migrations, and the rules that its files keep.

    0001_name.sql, 0002_other.sql ...    numbered from 1 without a gap, UTF-8
    -- springtide: no-transaction        statement by statement, for CREATE and DROP INDEX CONCURRENTLY
    -- springtide: unsharded <reason>    its tables may do without `bucket` in their primary key

Every name is qualified by the module's own schema, every table has `bucket` in its primary key, and no file
controls transactions or makes the schema: the migrator does. All faults of a folder are reported at once.
Pure but for reading the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from springtide.db._references import references
from springtide.db._sql import Kind, SqlTextError, Statement, Token, statements
from springtide.errors import MigrationError

__all__ = ["MigrationFile", "line_of", "load", "parse"]

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_DIRECTIVE = re.compile(r"^\s*--\s*springtide:\s*(\S+)[ \t]*(.*?)\s*$", re.MULTILINE)
_SYSTEM_SCHEMAS = frozenset({"pg_catalog", "information_schema"})
_TRANSACTION_CONTROL = ("begin", "commit", "rollback", "end", "start", "savepoint", "abort", "release")


@dataclass(frozen=True, slots=True)
class MigrationFile:
    """One file. `checksum` is SHA-256 over its text with Unix line ends, hexadecimal."""

    number: int
    name: str
    text: str
    checksum: str
    transactional: bool
    sharded: bool
    statements: tuple[Statement, ...]


def load(folder: Path, schema: str) -> list[MigrationFile]:
    """The migrations in `folder` in order. Raises MigrationError that lists every fault."""
    if not folder.is_dir():
        raise MigrationError(f"the folder of migrations {folder} does not exist")
    faults: list[str] = []
    files: list[MigrationFile] = []
    for path in sorted(folder.glob("*.sql")):
        try:
            files.append(parse(path.name, path.read_text("utf-8")))
        except UnicodeDecodeError:
            faults.append(f"{path.name}: must be UTF-8")
        except MigrationError as error:
            faults.append(str(error))
    if not faults:
        faults += _number_faults(files)
    if not faults:
        faults += [fault for file in files for fault in _statement_faults(file, schema)]
        faults += _key_faults(files)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        noun = "fault" if len(faults) == 1 else "faults"
        raise MigrationError(f"migrations of {schema!r} in {folder}: {len(faults)} {noun}\n{lines}")
    return files


def parse(name: str, text: str) -> MigrationFile:
    """One file's text. Raises MigrationError for its name, its directives or text that does not end."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise MigrationError(f"{name}: must be named like 0001_what_it_does.sql (lower case, digits, _)")
    text = text.replace("\r\n", "\n")
    transactional = sharded = True
    for directive in _DIRECTIVE.finditer(text):
        word, reason = directive[1], directive[2]
        if word == "no-transaction" and not reason:
            transactional = False
        elif word == "unsharded" and reason:
            sharded = False
        else:
            known = "`no-transaction` and `unsharded <reason>`"
            got = f"{word} {reason}".strip()
            line = line_of(text, directive.start(1))
            raise MigrationError(f"{name}:{line}: {known} are known, got {got!r}")
    try:
        found = statements(text)
    except SqlTextError as error:
        raise MigrationError(f"{name}:{line_of(text, error.position)}: {error}") from error
    if not found:
        raise MigrationError(f"{name}: holds no statement")
    checksum = sha256(text.encode()).hexdigest()
    return MigrationFile(int(match[1]), name, text, checksum, transactional, sharded, tuple(found))


def line_of(text: str, position: int) -> int:
    """The line, from 1, of the character at `position`, from 0."""
    return text.count("\n", 0, position) + 1


def _number_faults(files: Sequence[MigrationFile]) -> Iterator[str]:
    expected = 1
    for before, file in zip([None, *files], files, strict=False):
        if before is not None and before.number == file.number:
            yield f"{before.name} and {file.name} have the same number: the later one takes the next free one"
            continue
        if file.number != expected:
            yield f"{file.name}: number {expected:04} is missing before it"
        expected = file.number + 1


def _statement_faults(file: MigrationFile, schema: str) -> Iterator[str]:
    for statement in file.statements:
        where = f"{file.name}:{line_of(file.text, statement.start)}"
        first = statement.tokens[0].text if statement.tokens[0].kind is Kind.WORD else ""
        words = {token.text for token in statement.tokens if token.kind is Kind.WORD}
        if first in _TRANSACTION_CONTROL or statement.begins("prepare", "transaction"):
            yield f"{where}: {first.upper()} is the migrator's: it commits the file and its record together"
            continue
        if statement.begins("create", "schema"):
            yield f"{where}: the migrator creates the schema {schema!r}"
            continue
        if "concurrently" in words and not statement.begins("refresh"):
            index = statement.begins("drop", "index") or (first == "create" and "index" in words)
            if not index:
                yield f"{where}: only CREATE INDEX and DROP INDEX may be CONCURRENTLY in a migration"
            elif file.transactional:
                yield f"{where}: CONCURRENTLY needs the line `-- springtide: no-transaction`"
            elif first == "create" and created_index(statement) is None:
                yield f"{where}: an index created CONCURRENTLY needs a name, to be found after a crash"
        for reference in sorted(references(statement.text), key=str):
            if reference.schema is None:
                yield f"{where}: {reference} must be written with its schema, {schema}.{reference}"
            elif reference.schema != schema and reference.schema not in _SYSTEM_SCHEMAS:
                yield f"{where}: {reference} belongs to another schema than {schema!r}"


def created_index(statement: Statement) -> tuple[str, str] | None:
    """Schema and name of what CREATE [UNIQUE] INDEX CONCURRENTLY makes; None when it has no name."""
    words = [token for token in statement.tokens if not token.word("if", "not", "exists", "only")]
    at = next((index for index, token in enumerate(words) if token.word("concurrently")), None)
    if at is None or len(words) < at + 6 or not words[at + 2].word("on") or words[at + 4].text != ".":
        return None
    return words[at + 3].text, words[at + 1].text


def dropped_index(statement: Statement) -> tuple[str, str] | None:
    """Schema and name of the one index that DROP INDEX CONCURRENTLY removes."""
    words = [token for token in statement.tokens if not token.word("if", "exists")]
    if len(words) < 6 or words[4].text != ".":
        return None
    return words[3].text, words[5].text


def _key_faults(files: Sequence[MigrationFile]) -> Iterator[str]:
    """Tables without `bucket` in their primary key, which may be added by a later ALTER TABLE."""
    missing: dict[str, str] = {}
    for file in files:
        for statement in file.statements:
            table = _created_table(statement)
            if table is not None and file.sharded and not _partition(statement):
                if "bucket" not in (_primary_key(statement.tokens) or ()):
                    missing[table] = f"{file.name}:{line_of(file.text, statement.start)}"
                continue
            altered = _altered_table(statement)
            if altered is not None and "bucket" in (_primary_key(statement.tokens) or ()):
                missing.pop(altered, None)
    for table, where in missing.items():
        yield (
            f"{where}: {table} needs `bucket smallint not null` in its primary key, so that its rows can move"
            " between shards; or give the file the line `-- springtide: unsharded <reason>`"
        )


def _created_table(statement: Statement) -> str | None:
    """The table that a CREATE TABLE makes; None for anything else and for temporary tables."""
    if not statement.begins("create"):
        return None
    for index, token in enumerate(statement.tokens[1:5], start=1):
        if token.word("temp", "temporary"):
            return None
        if token.word("table"):
            return _name_at(statement.tokens, index + 1)
        if not token.word("unlogged", "global", "local"):
            return None
    return None


def _altered_table(statement: Statement) -> str | None:
    return _name_at(statement.tokens, 2) if statement.begins("alter", "table") else None


def _name_at(found: Sequence[Token], index: int) -> str:
    while index < len(found) and found[index].word("if", "not", "exists", "only"):
        index += 1
    return "".join(token.text for token in found[index : index + 3])


def _partition(statement: Statement) -> bool:
    pairs = zip(statement.tokens, statement.tokens[1:], strict=False)
    return any(first.word("partition") and second.word("of") for first, second in pairs)


def _primary_key(found: Sequence[Token]) -> list[str] | None:
    """The columns of the primary key that a CREATE or ALTER TABLE declares."""
    depth, column = 0, ""
    for index, token in enumerate(found):
        if token.text == "(" and token.kind is Kind.SYMBOL:
            depth += 1
        elif token.text == ")" and token.kind is Kind.SYMBOL:
            depth -= 1
        starts = depth == 1 and found[index - 1].text in "(," and found[index - 1].kind is Kind.SYMBOL
        if starts and token.name:
            column = token.text
        if token.word("primary") and index + 1 < len(found) and found[index + 1].word("key"):
            if index + 2 < len(found) and found[index + 2].text == "(":
                columns: list[str] = []
                for inner in found[index + 3 :]:
                    if inner.text == ")":
                        return columns
                    if inner.name:
                        columns.append(inner.text)
            return [column]
    return None
