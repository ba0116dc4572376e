"""What `edgetpu.py` compares: measured rows (`rows`), predictions (`predictions`), how good these are (`accuracy`)."""
