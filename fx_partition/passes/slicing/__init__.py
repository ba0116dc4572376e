"""Slicing: compute nodes that are too large for a budget in parts, for ``oversize="slice"``.

In: a captured graph and a budget. Out: a `rewrite.Slicing` for each such node, and the graph that computes them in
slices. A *slice* is a part of a node's work that reads a part of its weight. Along "outputs" the parts of the result
are concatenated, along "inputs" they are added up. `search` decides, `rules` lists the operators that can be sliced,
`rewrite` changes the graph (once for each choice of slicings), `writer` writes the slices of one node.
"""
