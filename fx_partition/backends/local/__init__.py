"""The local runtime: stages on threads, each pinned to the cores of one cache."""
