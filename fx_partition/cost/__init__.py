"""What a plan costs on a device: the work of each partition, what stays on chip, the time it takes, a simulation.

Imports passes, hardware and the documents of report; the command line and the package's door import it.
"""
