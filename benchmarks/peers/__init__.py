"""Other planners, each behind one function, and one scorer for all of them; `planner_peers.py` runs them."""
