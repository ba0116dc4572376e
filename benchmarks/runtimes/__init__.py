"""What `runtime.py` measures: models (`models`), ways to run them (`sides`, `crew`), and what is asked (`targets`)."""
