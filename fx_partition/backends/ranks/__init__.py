"""The distributed runtime: the ranks of a process group run the stages of one graph, each its own ones."""
