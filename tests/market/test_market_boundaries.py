"""Modules keep to themselves: each one's SQL to its own schema, each one's imports to the others' api."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.market.harness import Api

import market
from market.analytics import store as analytics
from market.catalog import cached as catalog_cached
from market.catalog import stock
from market.catalog import store as catalog
from market.content import cached as content_cached
from market.content import lists
from market.content import store as content
from market.content.api import ArticleQuery
from market.dashboard import lists as dashboard_lists
from market.dashboard import store as dashboard
from market.media import store as media
from market.notifications import cached as notifications_cached
from market.notifications import store as notifications
from market.orders import store as orders
from market.payments import store as payments
from market.platform import modules
from market.recommendations import follows
from market.recommendations import store as recommendations
from market.search import bulk as search_bulk
from market.search import store as search
from market.users import store as users
from market.webhooks import store as webhooks

APP = Path(market.__file__).parent
MODULES = {module.name: APP / module.name for module in modules() if module.name != "sessions"}
"""The modules of this application; that of sessions comes with the platform."""

SQL = re.compile(r"\s*(select|insert|update|delete|with|create|alter|drop|--)\b", re.IGNORECASE)
TABLE = re.compile(
    r"\b(?:from|join|into|update|table|on)\s+(?:only\s+)?([a-z_]+)\.([a-z_]+)\b", re.IGNORECASE
)


def statements_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Every text in Python files that holds SQL: file and text. Parts of f-strings count by themselves."""
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value):
                yield path.name, node.value


def texts(module: str) -> Iterator[tuple[str, str]]:
    """The SQL of a module, its migrations included."""
    yield from statements_in(MODULES[module])
    for path in sorted(MODULES[module].rglob("*.sql")):
        yield path.name, path.read_text()


def every_listing() -> Iterator[str]:
    """The statements that are put together while running, all combinations."""
    for tag in (None, "t"):
        for author in (None, 5):
            for fan in (None, 6):
                statement = lists.listing(ArticleQuery(tag=tag, author_id=author, favorited_by=fan), 7)
                yield from (statement.rows, statement.count)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_statement_keeps_to_its_modules_schema(module: str) -> None:
    """Tables are always named with their schema, and it is the module's own."""
    statements = [text for _, text in texts(module)]
    if module == "content":
        statements += every_listing()
    schemas = {schema for text in statements for schema, _ in TABLE.findall(text)}
    assert schemas - ALIASES == {module}


ALIASES = {
    "article", "account", "author_count", "charge", "held", "inbox", "listing", "preference", "recipient",
    "reservation", "stock", "subscription",
}  # fmt: skip
"""`join x on alias.column`: what follows ON is a column, not a table."""


@pytest.mark.parametrize("module", sorted(MODULES))
def test_sql_is_in_the_store_alone(module: str) -> None:
    files = {name for name, text in texts(module) if TABLE.search(text) and name.endswith(".py")}
    assert files <= {"store.py", "lists.py", "stock.py", "bulk.py", "follows.py", "cached.py"}


SCATTERED = {
    analytics.DAYS,
    content_cached.NEWEST,
    content_cached.TAGGED,
    catalog_cached.ON_SALE,
    content.TAGS,
    content.TAGS_FROM,
    content.TAGS_NAMED,
    lists.COUNT_ALL,
    lists.COUNT_TAG,
    catalog.CATEGORIES,
    stock.OVERDUE,
    stock.UNSETTLED,
    orders.DUE,
    payments.DUE_CHARGES,
    payments.DUE_REFUNDS,
    payments.BALANCES,
    notifications.FULL,
    recommendations.OLD_LISTS,
    recommendations.OLD_PURCHASES,
    recommendations.OLD_BASKETS,
    follows.OLD_AUTHORS,
    follows.POPULAR,
    dashboard_lists.EXPIRED,
    users.VERSIONS,
    content.VERSIONS,
    catalog.VERSIONS,
    search.FIND,
    search.SUGGEST,
    search.PRUNE,
    search_bulk.MOVE,
    media.EXPIRED,
    media.WAITING,
}
"""Statements about every bucket, which run by scatter."""


def test_every_other_statement_names_its_bucket() -> None:
    """So it finds its row by the primary key, and reads nothing of buckets that are somebody else's."""
    found = 0
    modules_stores = (users, content, lists, catalog, stock, payments, dashboard, recommendations, follows)
    cached = (content_cached, catalog_cached, notifications_cached)
    for store in (
        *modules_stores,
        *cached,
        dashboard_lists,
        orders,
        notifications,
        search,
        search_bulk,
        media,
        webhooks,
        analytics,
    ):
        for name, sql in vars(store).items():
            if isinstance(sql, str) and SQL.match(sql) and TABLE.search(sql) and sql not in SCATTERED:
                found += 1
                assert re.search(r"\bbucket\b", sql), name
    assert found > 30


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_table_has_its_bucket_in_its_primary_key(module: str) -> None:
    tables = re.findall(r"create table (\S+) \((.*?)\n\);", "\n".join(t for _, t in texts(module)), re.DOTALL)
    assert tables
    for name, columns in tables:
        assert re.search(r"^\s*bucket\s+smallint\s+not null,", columns, re.MULTILINE), name
        assert re.search(r"^\s*primary key \(bucket\b", columns, re.MULTILINE), name


async def test_what_ran_kept_to_its_schema(api: Api) -> None:
    """The same, seen from the database: each table that was touched is named with a module's schema."""
    jake = await api.person("Jake")
    slug = (await api.article(jake, tagList=["t"]))["slug"]
    await api.comment(jake, slug)
    await api.titles("/articles", tag="t", author="Jake", favorited="Jake")
    ran = [signal.statement for signal in api.recorder.statements]
    assert len(ran) > 10
    touching = [text for text in ran if TABLE.search(text)]
    assert len(touching) > 10
    for text in touching:
        schemas = {schema for schema, _ in TABLE.findall(text)} - ALIASES
        assert len(schemas) == 1, text


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_modules_import_only_each_others_interfaces() -> None:
    """Two files know more of a module: platform.py lists them, the seed writes through their `bulk`."""
    for path in sorted(APP.rglob("*.py")):
        owner = path.relative_to(APP).parts[0]
        if path == APP / "platform.py":
            continue
        for name in imported(path):
            for module in MODULES:
                inside = name == f"market.{module}" or name.startswith(f"market.{module}.")
                if inside and owner != module:
                    rest = name.removeprefix(f"market.{module}").lstrip(".")
                    open_to_it = {"", "api"} | ({"bulk"} if owner in ("seed.py", "seeding") else set())
                    assert rest.split(".")[0] in open_to_it, f"{path}: {name}"


def test_the_interfaces_import_nothing_but_the_shared_vocabulary() -> None:
    for module, folder in MODULES.items():
        names = {name for name in imported(folder / "api.py") if name.startswith("market")}
        shared = {
            name for name in names if ".".join(name.split(".")[:2]) in ("market.faults", "market.money")
        }
        assert names == shared, module


QUIET = {
    "PIL", "asyncpg", "cryptography", "fastapi", "http_ece", "idna", "jinja2", "markdown_it", "market",
    "markupsafe", "msgspec", "py_vapid", "python_multipart", "springtide", "starlette",
}  # fmt: skip
"""Packages that call nobody but the platform's own servers."""

LOUD = {
    "asyncio.subprocess", "ftplib", "http.client", "imaplib", "multiprocessing", "poplib", "smtplib",
    "socket", "socketserver", "ssl", "subprocess", "urllib.request", "xmlrpc",
}  # fmt: skip
"""Parts of Python that call somebody."""

CALLS = {
    "create_connection", "create_datagram_endpoint", "create_subprocess_exec", "create_subprocess_shell",
    "create_unix_connection", "getaddrinfo", "open_connection", "open_unix_connection", "popen",
    "sock_connect", "start_tls",
}  # fmt: skip

CALLERS = {
    "media/blobs.py": "uploads and what serves them wait for the bucket: the answer is about the bytes",
    "media/workshop.py": "jobs alone start ffmpeg",
    "notifications/mail.py": "jobs alone send mail",
    "payments/client.py": "whoever places or cancels an order is told whether it is paid",
    "strangers.py": "jobs alone call addresses of strangers",
}
"""Those who call third parties, and who waits for it. One more belongs into a job: see README.md."""

STRANGERS = {"notifications/push.py", "webhooks/delivery.py"}
"""Called by jobs alone."""


def test_who_calls_third_parties_is_on_a_list() -> None:
    """Whatever new code uses to call somebody is seen here, tested or not (outgoing.py sees what runs)."""
    calling, to_strangers = set(), set()
    for path in sorted(APP.rglob("*.py")):
        file = str(path.relative_to(APP))
        if file.startswith(("provider/", "mailbox/")):
            continue  # third parties themselves, processes of their own
        for name in imported(path):
            first = name.split(".")[0]
            foreign = first not in QUIET and first not in sys.stdlib_module_names
            if foreign or any(f"{name}.".startswith(f"{part}.") for part in LOUD):
                calling.add(file)
            if name == "market.strangers.Caller":
                to_strangers.add(file)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in CALLS:
                calling.add(file)
    assert calling == set(CALLERS)
    assert to_strangers == STRANGERS


@pytest.mark.parametrize("rim", ["realworld", "rest", "storefront"])
def test_the_rims_know_no_tables(rim: str) -> None:
    for path in sorted((APP / rim).rglob("*.py")):
        known = {name for name in imported(path) if name.startswith("springtide.db")}
        assert not {name for name in known if not name.startswith("springtide.db.idempotency")}, path
    assert not [text for _, text in statements_in(APP / rim) if TABLE.search(text)]
