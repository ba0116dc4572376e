if __name__ != "fx_partition.passes":  # the top-level link `passes` is a door for readers
    raise ImportError("import fx_partition.passes, not the link of the same name")

"""Graph in, graph or facts out. Nothing here knows a device or a runtime."""
