"""Three commands for a machine with a GPU: `check` (is it right), `curve` (what the L2 gains), `product` (the package).

README.md in this folder says how to run them. Each writes its results as JSON after every section (`results`), so
that a command that is stopped keeps what it has measured. `figures` has the arithmetic, which needs no GPU; `timing`,
`windows`, `read_kernel`, `stages` and `llama` are what is timed and how. Where the package is not installed, importing
this installs a copy for the time of the process (`installation`).
"""

from .installation import provide

provide()
