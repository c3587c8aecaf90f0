"""Files of ours: locks between processes and atomic writes."""
