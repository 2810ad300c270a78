"""`springtide db advise`: what the statements of a running platform say about its indexes and its code.

observed    statements with their figures, from snapshots of processes and from pg_stat_statements
catalog     tables, columns, indexes and their use, as the server knows them
reading     a statement's text -> what it asks of each table (pure)
candidates  what is asked -> indexes worth a trial (pure)
judging     the planner's opinion of an index that is not there: HypoPG, else a scratch copy
indexing    statements + candidates + judge -> missing indexes, merged, weighed against writes
present     unused, duplicate and prefix indexes, foreign keys without one (pure)
asking      loops, deep OFFSET, SELECT * (pure)
server      what a larger machine would bring (pure)
advisor     one database looked at; findings ranked
findings    what is told, as text and as JSON
"""
