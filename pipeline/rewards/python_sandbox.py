"""The process in which a program of a completion runs; a script that imports nothing of ours (see `python_tests.py`).

It reads a job, gives up what the program must not have, and runs it as `__main__`. Limits of the kernel are set before
the program begins and cannot be lifted again:

- resource limits: CPU seconds, address space, size of its output, open files, no core dumps;
- seccomp: no sockets, no other processes or programs, no signals to others, nothing that changes the machine;
- Landlock, where the kernel has it (Linux 5.13): files can be read in Python's own folders and the system's libraries
  alone, and written nowhere.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

# Numbers of system calls on x86_64 and aarch64 (-1: there is none).
DENIED = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "io_uring_setup": (425, 425),
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "truncate": (76, 45), "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54), "utime": (132, -1),
    "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "mount": (165, 40), "unshare": (272, 97), "setns": (308, 268),
    "chroot": (161, 51), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "reboot": (169, 142),
    "sethostname": (170, 161), "settimeofday": (164, 170), "clock_settime": (227, 112), "kexec_load": (246, 104),
    "init_module": (175, 105), "finit_module": (313, 273), "shmget": (29, 194), "memfd_create": (319, 279),
    "setrlimit": (160, 164),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E, 56, 302), "aarch64": (1, 0xC00000B7, 220, 261)}
"""Column above, AUDIT_ARCH, and the numbers of `clone` and `prlimit64`."""
_CLONE3, _CLONE_THREAD, _X32 = 435, 0x10000, 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_SET_NO_NEW_PRIVS, _SET_SECCOMP = 38, 22
_LANDLOCK_ALL, _LANDLOCK_READ = (1 << 13) - 1, 0b1100
READABLE = ("/usr", "/lib", "/lib64", "/etc/localtime", "/dev/null", "/dev/urandom")


class _Filter(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filters", ctypes.POINTER(_Filter)))


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled", ctypes.c_uint64),)


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def main() -> None:
    """Runs the job that the first argument names: `{code, test, cpu_s, memory_bytes, output_bytes, token}`.

    Where the test has run through, the token is written to the descriptor of the second argument: that the process ends
    well is no proof, as a program may end it before its test.
    """
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    proof = int(sys.argv[2])
    for kind, limit in (
        (resource.RLIMIT_CPU, job["cpu_s"]),
        (resource.RLIMIT_AS, job["memory_bytes"]),
        (resource.RLIMIT_FSIZE, job["output_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        sys.exit("no_new_privs is refused")
    close_files(libc, (*READABLE, sys.prefix, sys.base_prefix))
    if not close_calls(libc):
        sys.exit("seccomp is refused")
    space: dict[str, object] = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(job["code"], "completion.py", "exec"), space)
    exec(compile(job["test"], "test.py", "exec"), space)
    sys.stdout.flush()
    os.write(proof, job["token"].encode())


def close_calls(libc: ctypes.CDLL) -> bool:
    """Seccomp: the calls of `DENIED` fail with EPERM from here on. Whether the kernel took it."""
    if platform.machine() not in MACHINES:
        return False
    column, arch, clone, prlimit = MACHINES[platform.machine()]
    refuse, allow = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    number, low_of_first_argument = (_LOAD, 0, 0, 0), (_LOAD, 0, 0, 16)
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), number, (_AT_LEAST, 0, 1, _X32), refuse]
    for call in (numbers[column] for numbers in DENIED.values() if numbers[column] >= 0):
        steps += [(_EQUAL, 0, 1, call), refuse]
    # Threads are no processes. What `clone3` is asked for lies behind a pointer: without it, libc takes `clone`.
    steps += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    steps += [(_EQUAL, 0, 4, clone), low_of_first_argument, (_ANY_BIT, 1, 0, _CLONE_THREAD), refuse, allow]
    # `prlimit64` may ask for limits; what it would set lies behind its third argument: both halves are looked at.
    steps += [(_EQUAL, 0, 6, prlimit), (_LOAD, 0, 0, 32), (_EQUAL, 0, 2, 0), (_LOAD, 0, 0, 36), (_EQUAL, 1, 0, 0)]
    steps += [refuse, allow, allow]
    filters = (_Filter * len(steps))(*steps)
    program = _Program(len(steps), filters)
    return libc.prctl(_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0


def close_files(libc: ctypes.CDLL, readable: tuple[str, ...]) -> bool:
    """Landlock: nothing but these paths can be read from here on, and nothing written. Whether the kernel has it."""
    attributes = _Ruleset(_LANDLOCK_ALL)
    ruleset = libc.syscall(444, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    if ruleset < 0:
        return False
    for path in {path for path in readable if os.path.exists(path)}:
        parent = os.open(path, os.O_PATH)
        allowed = _LANDLOCK_READ if os.path.isdir(path) else 0b100
        rule = _PathRule(allowed, parent)
        libc.syscall(445, ruleset, 1, ctypes.byref(rule), 0)
        os.close(parent)
    is_closed = libc.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return is_closed


if __name__ == "__main__":
    main()
