"""Random programs against eager mode: `python -m tests.fuzz --graphs 5000`.

`draft` writes a `program` from a seed with the instructions of `kinds_*`, running each as it is written, so that every
program runs. `check` runs it eagerly and by each of `roads`; `observe` compares what is seen, bit by bit. Of a failure
`shrink` drops what it does not need, and `script` prints the rest as a script that stands alone.
"""
