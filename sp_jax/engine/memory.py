"""The memory for samples."""

import os

import jax


def of_devices() -> int:
    """Return the bytes of a host's devices together, of the host where they are its cores."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    of_devices = sum(each.get("bytes_limit", 0) for each in stats)
    return of_devices or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
