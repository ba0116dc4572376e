"""Decoding of language models on paper: bytes, operations and seconds by formula, from the records of devices."""
