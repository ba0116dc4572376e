"""Slicing: nodes that are too large for a budget are computed in parts, for ``oversize="slice"``.

In: a captured graph and a budget. Out: the graph in which such nodes are slices, and a `rewrite.Slicing` for each. A
*slice* is a part of a node's work that reads a part of its weight. Along "outputs" the parts of the result are
concatenated, along "inputs" they are added up. `search` decides, `rules` says which operators can be sliced,
`rewrite` changes the graph, `writer` writes the nodes of one slice.
"""
