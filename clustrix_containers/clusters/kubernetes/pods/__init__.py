"""Pods and Jobs as the API server shows them, and what that means for an element."""
