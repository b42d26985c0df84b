"""Fresh memory is dear: where the C library hands freed blocks back, each temporary pays for it.

It knows nothing of solves.
"""

from __future__ import annotations

import ctypes

__all__ = ["retain_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


def retain_freed_memory(limit: int = 512 << 20) -> bool:
    """Let this process keep freed memory on the CPU for the next tensors (glibc only).

    A solver makes and frees temporaries of one size again and again. By default, glibc maps a
    block of more than 128 KiB when it is allocated and unmaps it when it is freed (later it
    learns, block by block), and the kernel clears every page at its first use: for a matrix of
    2 MiB that takes longer than a sum or a product on it. After a call of this function, blocks of
    up to 32 MiB come from memory that the process holds.

    It is a permanent setting of the whole process; the library never changes it by itself.

    Parameters
    ----------
    limit
        How many freed bytes at the end of the heap the process may hold, 512 MiB by default.

    Returns
    -------
    bool
        Whether the setting was made: False where the C library is not glibc (macOS, Windows,
        musl), which keeps freed memory by rules of its own.

    Raises
    ------
    ValueError
        If ``limit`` is not a positive number of bytes below 2 GiB.

    Notes
    -----
    It changes where blocks come from, of tensors of any shape and dtype, and no value.

    Source: mallopt(3), ``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD``.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> kept = ims.retain_freed_memory()
    """
    if not 0 < limit < 1 << 31:
        raise ValueError(f"limit is {limit!r}: pass a number of bytes, from 1 to 2**31 - 1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    settings = ((_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_TRIM_THRESHOLD, limit))
    made = [mallopt(option, value) for option, value in settings]
    return made == [1, 1]
