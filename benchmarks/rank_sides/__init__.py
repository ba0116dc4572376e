"""What `distributed.py` measures: ways to run (`sides`), hops (`hops`), processes (`crew`), targets (`targets`)."""
