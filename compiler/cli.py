"""The command line, `infopt`: its arguments, and how its commands fail.

Each command is `run(args) -> exit status` in a file of `compiler/commands/`, imported only when
it is called, so that `infopt --help` answers at once.
"""

import argparse
import sys
from importlib import import_module

from infopt.compiler.commands.native_output import native_output_to_stderr
from infopt.compiler.settings import BadSetting, Settings

SOURCE = (
    "a folder with a transformers model, a torch.export archive (.pt2, unpickled by torch: only "
    "from writers you trust), or module:callable; the callable returns "
    "(model, args), (model, args, kwargs) or (model, args, kwargs, dynamic_shapes)"
)
PASS = "a pass by name, as file.py:Class or module:Class; it is added to the default ones"


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    args = parser().parse_args(argv)
    try:
        debug = Settings.from_environment().debug
    except BadSetting as wrong:
        return _fail(str(wrong), 2)
    try:
        with native_output_to_stderr():
            return import_module(f"infopt.compiler.commands.{args.module}").run(args)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of the output went away, as `| head` does
        sys.stderr.close()
        return 0
    except Exception as failure:
        if debug >= 1:
            raise
        return _fail(_one_line(failure), 1)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="infopt", description="An optimizing compiler for PyTorch inference."
    )
    commands = top.add_subparsers(title="commands", metavar="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead")
        sub.set_defaults(module=name)
        return sub

    demo = command("demo", "compile a real sentence encoder, search with it, compare it with torch")
    demo.add_argument("--compute", choices=["bf16"], help="permit computing in bf16")
    demo.add_argument("--seconds", type=_positive, default=1.0, help="of timing per arm and size")
    demo.add_argument(
        "--no-inductor", action="store_true", help="leave torch.compile's default out"
    )
    demo.add_argument("--output", metavar="PATH", help="keep the artifact here")

    compile = _compiling(command("compile", "compile a model and write the artifact"))
    compile.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="PATH",
        help="where to write the artifact: a folder, or one file named *.infopt",
    )
    compile.add_argument(
        "--also", metavar="TARGET", action="append", default=[], help="a further target, cpu:avx2"
    )
    compile.add_argument(
        "--golden", type=int, default=0, metavar="N", help="store N calls and their results"
    )

    run = command("run", "load an artifact and call it once")
    run.add_argument("artifact")
    run.add_argument("--key", metavar="FILE", help="the signer's public key (.pem)")
    _inputs(run)
    run.add_argument("--output", metavar="FILE", help="write the result tensors (.safetensors)")

    bench = _compiling(command("bench", "time a model, compiled and eager, call by call in turn"))
    bench.add_argument(
        "--seconds", type=_positive, default=2.0, help="of timing, all arms together"
    )

    inspect = command("inspect", "what an artifact holds: signature, targets, passes, files")
    inspect.add_argument("artifact")

    verify = command("verify", "check every byte of an artifact, and its signature with --key")
    verify.add_argument("artifact")
    verify.add_argument("--key", metavar="FILE", help="the signer's public key (.pem)")
    verify.add_argument("--golden", action="store_true", help="replay its stored calls")

    sign = command("sign", "sign an artifact: adds model.sig in the OpenSSF form")
    sign.add_argument("artifact")
    sign.add_argument("--key", metavar="FILE", required=True, help="an EC private key (.pem)")

    explain = _compiling(command("explain", "where a pass applied, and where not and why"))
    explain.add_argument("pass_name", metavar="pass", nargs="?", help="one pass; default all")
    explain.add_argument("--html", metavar="FILE", help="write a page with all there is")

    passes = command("passes", "list the passes; run, compare and bisect them on a model")
    passes.set_defaults(what="list")
    kinds = passes.add_subparsers(metavar="list | run | diff | bisect")

    def kind(name: str, text: str) -> argparse.ArgumentParser:
        sub = kinds.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        sub.set_defaults(what=name)
        return sub

    kind("list", "what runs by default, on request, and what installed packages offer")
    for name, text in (
        ("run", "where passes apply in a model, where not and why, and how far results move"),
        ("diff", "what passes change in a model's graph"),
        (
            "bisect",
            "the first pass and its first site that leave the accuracy contract, or kernels",
        ),
    ):
        sub = kind(name, text)
        sub.add_argument("source", help=SOURCE)
        sub.add_argument("passes", metavar="pass", nargs="*", help=PASS + "; default all")
        sub.add_argument("--compute", choices=["bf16"], help="permit computing in bf16")
        sub.add_argument("--target", default="native", help="such as cpu:avx2")
        if name in ("run", "diff"):
            sub.add_argument(
                "--measure",
                type=_positive,
                metavar="SECONDS",
                help="time each pass, without it against with it, for so long",
            )
        if name == "diff":
            sub.add_argument("--html", metavar="FILE", help="write a page with all there is")

    cache = command("cache", "show the compiled code that is kept, or remove it")
    cache.add_argument("what", choices=["show", "clear", "prune"], nargs="?", default="show")
    cache.add_argument(
        "--size", metavar="SIZE", help="prune to this size, such as 500M; default INFOPT_CACHE_SIZE"
    )

    tuning = command("tuning", "schedules measured with --tune: show, export, merge")
    tuning.add_argument("what", choices=["show", "export", "merge"], nargs="?", default="show")
    tuning.add_argument("file", nargs="?", help="to export to, or to merge from")

    command("doctor", "what this machine has, and which kernels it gets")
    return top


def _compiling(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    sub.add_argument("source", help=SOURCE)
    sub.add_argument("--compute", choices=["bf16"], help="permit computing an fp32 model in bf16")
    sub.add_argument(
        "--weights",
        action="append",
        metavar="[PATTERN=]FORMAT",
        help="store weights of linear layers in int8, int4-g32, ...; may be given several times",
    )
    sub.add_argument("--activations", choices=["int8"], help="of layers with such weights")
    sub.add_argument("--max-error", type=_positive, help="relative, end to end on the example")
    sub.add_argument(
        "--objective",
        choices=["latency", "memory", "size"],
        help="choose each layer's format: the best for this within --max-error",
    )
    sub.add_argument("--target", default="native", help="such as cpu:avx2; default this machine")
    sub.add_argument("--tune", type=int, choices=[0, 1, 2], help="0 none, 1 quick, 2 thorough")
    sub.add_argument("--threads", type=int, help="default: all cores")
    sub.add_argument("--add", metavar="PASS", action="append", default=[], help=PASS)
    sub.add_argument("--strict", action="store_true", help="fail where torch would have to step in")
    return sub


def _inputs(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--inputs", metavar="FILE", help="named tensors (.safetensors); default random ones"
    )
    sub.add_argument(
        "--size", action="append", default=[], metavar="DIM=N", help="of a dim, for random inputs"
    )


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return value


def _one_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines() or ["no message"]
    more = " [INFOPT_DEBUG=1 shows more]" if len(lines) > 1 else ""
    return f"{type(failure).__name__}: {lines[0]}{more}"


def _fail(message: str, status: int) -> int:
    print(f"infopt: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
