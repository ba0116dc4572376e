if __name__ != "fx_partition.backends":  # the top-level link `backends` is a door for readers
    raise ImportError("import fx_partition.backends, not the link of the same name")

"""Plan in, running code out."""
