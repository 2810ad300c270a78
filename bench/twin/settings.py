"""What the twin is told by its environment, read once at import time as most FastAPI services do."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """`database_url` for SQLAlchemy; tokens are signed by `token_secret` and live `token_lifetime` seconds.

    An order that nobody has touched for `pending_after` seconds is gone on with.
    """

    database_url: str
    token_secret: str
    provider_url: str
    provider_key: str
    token_lifetime: int = 86_400
    pending_after: float = 30.0
    pool_size: int = 20
    pool_timeout: float = 2.0

    @classmethod
    def from_environment(cls) -> Settings:
        return cls(
            database_url=os.environ["TWIN_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"),
            token_secret=os.environ["TWIN_TOKEN_SECRET"],
            provider_url=os.environ["TWIN_PROVIDER_URL"],
            provider_key=os.environ["TWIN_PROVIDER_KEY"],
            pending_after=float(os.environ.get("TWIN_PENDING_AFTER", cls.pending_after)),
        )
