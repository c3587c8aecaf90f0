"""Machines that clusters are made of: namespaces with a root file system and an address.

A machine's processes, mounts and interfaces end with its first process, so whatever happens to
a test run, the kernel cleans up. Nothing of the host's network changes but one pair of virtual
interfaces per :class:`~tests.clusters.machines.network.Network`.
"""
