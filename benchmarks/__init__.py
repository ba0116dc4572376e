"""Benchmarks: each file here is a command, and each folder is what one of them shares or `gpu`'s three commands."""
