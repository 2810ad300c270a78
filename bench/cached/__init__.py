"""A small application for `bench.cache_faults`: registers behind a cache, ours or a naive one."""
