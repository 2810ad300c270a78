"""A conventional twin of market, to measure market against: six endpoints, written as a good team would.

FastAPI, SQLAlchemy 2 (asyncio ORM on asyncpg), pydantic v2, httpx, PyJWT, argon2-cffi; one schema with
foreign keys in a database of its own. Same addresses, requests and answers as market, same password cost,
same promises for orders; README.md says what is left out. It knows nothing of springtide and market.
"""
