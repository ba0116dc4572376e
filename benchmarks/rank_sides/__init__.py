"""What `ranks.py` measures: ways to run (`sides`), hops (`hops`), their processes (`crew`), targets (`targets`)."""
