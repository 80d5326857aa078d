"""A process that compiles launches one after the other: `python -m` this module, see `Workers`.

A request and its answer are pickles after their length in eight bytes, on standard input and
output; what a compiler prints goes to standard error.
"""

from __future__ import annotations

import os
import pickle
import struct
from typing import Any, BinaryIO

from infopt.codegen.triton_compile import CannotCompile, Compiled, compile_launch

LENGTH = struct.Struct("<q")


def write(stream: BinaryIO, value: object) -> None:
    """One message."""
    text = pickle.dumps(value)
    stream.write(LENGTH.pack(len(text)) + text)
    stream.flush()


def read(stream: BinaryIO) -> Any:
    """One message. Raises EOFError where the other side has ended."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError("the other process has ended")
    (length,) = LENGTH.unpack(head)
    text = stream.read(length)
    if len(text) < length:
        raise EOFError("the other process has ended in the middle of a message")
    return pickle.loads(text)


def main() -> None:
    """Answer each request (launch, arch, unaligned) with Compiled, or the text of an error."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            launch, arch, unaligned = read(requests)
        except EOFError:
            return
        try:
            answer: Compiled | str = compile_launch(launch, arch, unaligned)
        except CannotCompile as error:
            answer = str(error)
        except Exception as error:
            answer = f"{launch.entry} for {arch}: {type(error).__name__}: {error}"
        write(answers, answer)


if __name__ == "__main__":
    main()
