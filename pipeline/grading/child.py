"""The process in which a user's function runs: takes batches from a socket, writes rewards to it.

A frame is eight bytes (big endian), the length of what follows: a pickle to this process, JSON from it. What the
function prints goes to the file that is this process's standard output.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import linecache
import os
import pickle
import resource
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.config import Adapter
from pipeline.data.schema import MEDIA_COLUMNS
from pipeline.grading.records import Failure, RewardCompletion, RewardPrompt, plain
from pipeline.records import Audio, Image, MediaKind, Medium, Video

LENGTH_BYTES = 8
_LOOK_S = 1.0


@dataclass(frozen=True)
class Code:
    """A function of a user's, as it travels to whoever runs it.

    place: `file.py:function` or `package.module:function`. source: the file's text, None of a module.
    paths: directories in which its imports are looked for, relative ones in the working directory of its process.
    options: keyword arguments that it is called with beside the others.
    """

    place: str
    source: str | None
    paths: tuple[str, ...]
    adapter: Adapter = Adapter.POLYPHONY
    memory_mib: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def main(descriptor: int) -> None:
    """Loads a function, then answers batch after batch until the other end hangs up."""
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    channel = socket.socket(fileno=descriptor)
    stream = channel.makefile("rb")
    code: Code = pickle.loads(_read(stream))
    if code.memory_mib is not None:
        bound = code.memory_mib * 2**20
        with suppress(ValueError, OSError):  # the machine's own limit is lower
            resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    try:
        function = loaded(code)
        _write(channel, {"ready": True})
    except BaseException as error:  # whatever a module does when it is imported
        _write(channel, {"failure": Failure.EXCEPTION, "detail": _traceback(error, code)})
        return
    call = _as_trl(function) if code.adapter is Adapter.TRL else function
    while frame := _read(stream):
        prompts, completions = pickle.loads(frame)
        try:
            answer = {"rewards": plain(call(prompts, completions))}
        except MemoryError as error:
            answer = {"failure": Failure.OUT_OF_MEMORY, "detail": _traceback(error, code)}
        except BaseException as error:  # SystemExit too: a function ends no job
            answer = {"failure": Failure.EXCEPTION, "detail": _traceback(error, code)}
        sys.stdout.flush()
        _write(channel, answer)


def loaded(code: Code) -> Callable[..., Any]:
    """The function.

    Raises:
        AttributeError: the module has none of this name, or it cannot be called. Whatever the import raises.
        TypeError: it does not take the options.
    """
    paths = dict.fromkeys(os.path.abspath(path) for path in (*code.paths, "."))
    sys.path[:0] = [path for path in paths if path not in sys.path]
    place, _, name = code.place.rpartition(":")
    if code.source is None:
        module = importlib.import_module(place)
    else:
        module = ModuleType(Path(place).stem)
        module.__file__ = place
        sys.modules[module.__name__] = module
        # So that tracebacks show lines, on nodes that do not have the file as well.
        linecache.cache[place] = (len(code.source), None, code.source.splitlines(keepends=True), place)
        exec(compile(code.source, place, "exec"), module.__dict__)
    function = getattr(module, name, None)
    if not callable(function):
        there = ", ".join(each for each in vars(module) if callable(vars(module)[each]) and not each.startswith("_"))
        raise AttributeError(f"{place} has no function {name}; it has {there or 'none'}")
    if not code.options:
        return function
    inspect.signature(function).bind_partial(**code.options)  # what it does not take is told now, not at every call
    return functools.partial(function, **code.options)


def _as_trl(function: Callable[..., Any]) -> Callable[[Sequence[RewardPrompt], Sequence[RewardCompletion]], Any]:
    """Calls a function as TRL's trainers call reward functions: conversations in, columns by name."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    taken = {each.name for each in parameters}

    def call(prompts: Sequence[RewardPrompt], completions: Sequence[RewardCompletion]) -> Any:
        columns: dict[str, list[Any]] = {
            "prompts": [[vars(message) for message in prompt.messages] for prompt in prompts],
            "completions": [[{"role": "assistant", "content": each.text}] for each in completions],
            "completion_ids": [each.token_ids.tolist() for each in completions],
            **{name: [getattr(prompt, name) for prompt in prompts] for name in ("id", "task", "answer", "accepted")},
            **{name: [_of_kind(prompt, kind) for prompt in prompts] for kind, name in MEDIA_COLUMNS.items()},
            **{name: [prompt.columns[name] for prompt in prompts] for name in (prompts[0].columns if prompts else ())},
        }
        return function(**{name: column for name, column in columns.items() if takes_all or name in taken})

    return call


def _of_kind(prompt: RewardPrompt, kind: MediaKind) -> list[Any]:
    kinds: Mapping[type, MediaKind] = {Image: MediaKind.IMAGE, Audio: MediaKind.AUDIO, Video: MediaKind.VIDEO}
    return [each for each in prompt.media if (each.kind if isinstance(each, Medium) else kinds[type(each)]) is kind]


def _traceback(error: BaseException, code: Code) -> str:
    """The traceback from the user's own code on."""
    frames = traceback.TracebackException.from_exception(error)
    own = [index for index, frame in enumerate(frames.stack) if frame.filename != __file__]
    if own:
        frames.stack[:] = frames.stack[own[0] :]
    return "".join(frames.format()).strip()


def _read(stream: Any) -> bytes:
    length = stream.read(LENGTH_BYTES)
    return stream.read(int.from_bytes(length, "big")) if len(length) == LENGTH_BYTES else b""


def _write(channel: socket.socket, answer: Mapping[str, Any]) -> None:
    encoded = json.dumps(answer).encode()
    channel.sendall(len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a function may be at work for ever."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
