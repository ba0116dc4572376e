"""What `runtime.py` measures: models (`models`), ways to run them (`runners`, `workers`), and what is asked
(`targets`).
"""
