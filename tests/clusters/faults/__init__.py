"""Faults on demand: a network that is slow or cut, files that show late, a disk that is full.

Each is real to what meets it: sockets that are reset, a mounted file system, ENOSPC. A machine's
own faults (power off, pause, a pulled cable, lost packets) are functions of
:class:`~tests.clusters.machines.machine.Machine`.
"""
