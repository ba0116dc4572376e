"""What `distributed.py` measures: ways to run (`runners`), hops (`hops`), processes (`workers`), targets
(`targets`).
"""
