"""A program of Python that the kernel ends where it asks for the network (Linux, seccomp).

    python tests/no_network.py -m d2nas verify BUNDLE
    python tests/no_network.py --may-listen -m d2nas serve BUNDLE

The filter holds for native libraries, threads and child processes alike, which a replaced module
``socket`` would not. SIGSYS ends who tried.
"""

import ctypes
import os
import platform
import resource
import socket
import struct
import sys

_CALLS = {"x86_64": (41, 42), "aarch64": (198, 203)}
"""The numbers of the system calls socket and connect."""
NO_FILTER = 77
"""Exit code where the kernel takes no filter."""

_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_CALL, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 16, 24
_WITHOUT_FLAGS = 0xF
_NEVER = 0xFFFFFFFF


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid_network(*, may_listen: bool) -> None:
    """End this process, and those it starts, where they open a socket for IPv4 or IPv6.

    With ``may_listen`` where they open one that is not for TCP, or connect to anything at all.
    Raises ``OSError`` where the kernel takes no such filter.
    """
    socket_call, connect_call = _CALLS[platform.machine()]
    steps = (
        (_LOAD, 0, 0, _CALL),
        (_JUMP_IF_EQUAL, 7, 0, connect_call if may_listen else _NEVER),  # kill
        (_JUMP_IF_EQUAL, 0, 7, socket_call),  # or allow
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_IF_EQUAL, 1, 0, socket.AF_INET),
        (_JUMP_IF_EQUAL, 0, 4, socket.AF_INET6),  # or allow
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_AND, 0, 0, _WITHOUT_FLAGS),
        (_JUMP_IF_EQUAL, 1, 0, socket.SOCK_STREAM if may_listen else _NEVER),  # allow
        (_RETURN, 0, 0, _KILL),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    system = ctypes.CDLL(None, use_errno=True)
    none = ctypes.c_ulong(0)
    if system.prctl(_SET_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), none, none, none) or system.prctl(
        _SET_SECCOMP,
        ctypes.c_ulong(_FILTER_MODE),
        ctypes.byref(_Program(len(steps), code)),
        none,
        none,
    ):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter")


if __name__ == "__main__":
    listens = sys.argv[1] == "--may-listen"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        forbid_network(may_listen=listens)
    except (OSError, KeyError, AttributeError):
        raise SystemExit(NO_FILTER) from None
    os.execv(sys.executable, [sys.executable, *sys.argv[2 if listens else 1 :]])
