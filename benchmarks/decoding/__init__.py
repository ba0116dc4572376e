"""What `generate.py` measures: a model that decodes (`models`), and ways to run several sequences (`ways`)."""
