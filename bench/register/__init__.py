"""A small application for `bench.replicas`: one register per key, on a platform with replicas."""
