"""A payment provider to develop and test against: a third party in a process of its own.

It imports nothing of market and market nothing of it: the two speak HTTP, as with a real one.
`python -m market.provider --port 8010 --state provider.journal` runs it; see `http.py` for what it answers.
"""
