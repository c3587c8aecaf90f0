"""Files on this machine: locks and atomic writes."""
