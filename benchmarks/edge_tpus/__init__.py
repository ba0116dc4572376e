"""What `edgetpu.py` compares: measured rows (`rows`), predictions (`looked`), how good these are (`judged`)."""
