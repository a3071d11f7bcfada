"""``t2v-server``: serve, generate, prepare and check a model, look for what is wrong."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from t2v_server import __version__
from t2v_server.checkpoint.source import KINDS
from t2v_server.config import ConfigError, Settings, unknown_variables
from t2v_server.profiles import PROFILES

EXIT_CONFIG = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="t2v-server",
        description="Text to video. Settings are T2V_… variables, or a file named by T2V_CONFIG; "
        "README.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"t2v-server {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_serve(commands)
    _add_generate(commands)
    _add_model(commands)
    _add_doctor(commands)
    _add_bench(commands)
    _add_key(commands)
    engine = commands.add_parser("engine")  # the supervisor's; without help, so not listed
    engine.add_argument("--index", type=int, required=True)
    engine.set_defaults(run=_engine)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except ConfigError as error:
        print(f"t2v-server: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except KeyboardInterrupt:
        return 130


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("serve", help="serve HTTP, and generate")
    command.set_defaults(run=_serve)


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "generate",
        help="make one video",
        description="Make one video: here, with the model of the settings, or by a server.",
    )
    command.add_argument("prompt", help="what it shows; - reads it from stdin")
    command.add_argument("-o", "--output", required=True, help="the mp4 to write")
    command.add_argument("--force", action="store_true", help="write over an existing file")
    command.add_argument("--negative-prompt", default="")
    command.add_argument("--size", metavar="WIDTHxHEIGHT")
    command.add_argument("--seconds", metavar="S")
    command.add_argument("--num-frames", metavar="4k+1")
    command.add_argument("--fps", metavar="N")
    command.add_argument("--steps", metavar="N", dest="num_inference_steps")
    command.add_argument("--guidance-scale", metavar="X")
    command.add_argument("--flow-shift", metavar="X")
    command.add_argument("--seed", metavar="N")
    command.add_argument("--server", metavar="URL", help="ask this server instead")
    command.add_argument(
        "--token-file", metavar="FILE", help="its API key or token (T2V_TOKEN stands in for it)"
    )
    command.set_defaults(run=_generate)


def _add_model(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    model = commands.add_parser("model", help="fetch a model, or see whether it works")
    actions = model.add_subparsers(dest="action", required=True, metavar="prepare|check")
    prepare = actions.add_parser(
        "prepare",
        help="write a model as a profile needs it, for servers to load without a network",
        description="Writes published weights as a profile needs them: quantised once, verified by "
        "hashes, loaded straight to the device. An interrupted run goes on when it is repeated.",
    )
    prepare.add_argument(
        "--source", required=True, metavar="MODEL", help="OWNER/NAME of a hub, or a directory"
    )
    prepare.add_argument("--profile", required=True, choices=tuple(PROFILES))
    prepare.add_argument(
        "--output", required=True, metavar="DIR", help="the directory that it becomes"
    )
    prepare.add_argument(
        "--from", dest="kind", choices=("auto", *KINDS), default="auto",
        help="what MODEL is; auto: a path is a directory, all else huggingface",
    )  # fmt: skip
    prepare.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of a hub; default: the newest"
    )
    prepare.add_argument(
        "--token-file", metavar="FILE", help="a token of the Hugging Face Hub (or HF_TOKEN)"
    )
    prepare.add_argument(
        "--dry-run", action="store_true", help="say whether anything is to be done, and do nothing"
    )
    prepare.add_argument("--json", action="store_true", help="say what was done as JSON")
    prepare.set_defaults(run=_prepare)
    check = actions.add_parser(
        "check", help="see whether a prepared model is whole, loads and makes a clip"
    )
    check.add_argument("directory", nargs="?", metavar="DIR", help="default: T2V_MODEL")
    check.add_argument("--files", action="store_true", help="look at its files alone")
    check.add_argument("--quick", action="store_true", help="at their sizes, not their hashes")
    check.add_argument("--full", action="store_true", help="a clip of the default size")
    check.add_argument("--json", action="store_true", help="say what was found as JSON")
    check.set_defaults(run=_check)


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("doctor", help="check settings, directories, store and device")
    command.set_defaults(run=_doctor)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "bench",
        help="measure our pipeline beside diffusers' own, on random weights",
        description="Times and peaks of memory of each, and what each optimisation changes; exits "
        "with 1 if a goal for GPUs is missed.",
    )
    command.add_argument("--output", default="bench", help="directory for bench.json and bench.svg")
    command.add_argument(
        "--clone", choices=("auto", "tiny", "mid", "full"), default="auto",
        help="auto: full on a GPU, else mid",
    )  # fmt: skip
    command.add_argument("--steps", type=int, help="denoising steps, to be done sooner")
    command.add_argument(
        "--variant", action="append", default=[], choices=("stock", "ours", "few-step", "t4"),
        help="only this one (repeatable)",
    )  # fmt: skip
    for mine in ("--measure", "--model"):
        command.add_argument(mine, help=argparse.SUPPRESS)
    command.set_defaults(run=_bench)


def _add_key(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    key = commands.add_parser("key", help="API keys for T2V_API_KEYS_FILE")
    actions = key.add_subparsers(dest="action", required=True, metavar="new")
    new = actions.add_parser(
        "new",
        help="print a new key on stdout and the line for the file on stderr",
        description="The key is shown once and kept nowhere; the file holds its hash.",
    )
    new.add_argument("name", help="whose key it is")
    new.add_argument("--scopes", default="t2v:read,t2v:generate", help="default: %(default)s")
    new.add_argument("--file", help="append the line to this file instead of printing it")
    new.set_defaults(run=_new_key)


def _settings() -> Settings:
    for name in unknown_variables(os.environ):
        print(
            f"t2v-server: {name} is not a setting of this server and has no effect",
            file=sys.stderr,
        )
    return Settings.from_environ(os.environ)


def _serve(_options: argparse.Namespace) -> int:
    from t2v_server.serve import serve

    return serve(_settings())


def _engine(options: argparse.Namespace) -> int:
    from t2v_server.engine.process import run_engine
    from t2v_server.logs import set_up_logging

    settings = Settings.from_environ(os.environ)
    set_up_logging(settings.log)
    return run_engine(settings, options.index)


def _generate(options: argparse.Namespace) -> int:
    from t2v_server import make

    if options.prompt == "-":
        options.prompt = sys.stdin.read()
    return make.generate(options, None if options.server else _settings())


def _prepare(options: argparse.Namespace) -> int:
    from t2v_server import make

    return make.prepare(options)


def _check(options: argparse.Namespace) -> int:
    from t2v_server import make

    return make.check(options)


def _doctor(_options: argparse.Namespace) -> int:
    from t2v_server.doctor import examine

    return examine(os.environ)


def _bench(options: argparse.Namespace) -> int:
    from pathlib import Path

    from t2v_server.engine import bench

    output = Path(options.output)
    if options.measure:
        return bench.measure(
            options.measure, options.clone, options.steps, output, Path(options.model)
        )
    return bench.bench(output, options.clone, options.steps, options.variant)


def _new_key(options: argparse.Namespace) -> int:
    from t2v_server.api.auth import new_key

    scopes = [scope.strip() for scope in options.scopes.split(",")]
    key, line = new_key(options.name, scopes)
    if options.file:
        try:
            descriptor = os.open(options.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"--file {options.file} cannot be used: {error.strerror}") from error
        with open(descriptor, "a+b") as stream:  # noqa: PTH123
            size = stream.seek(0, os.SEEK_END)
            unfinished = size and os.pread(descriptor, 1, size - 1) != b"\n"
            stream.write(b"\n" * bool(unfinished) + f"{line}\n".encode())
    else:
        print(line, file=sys.stderr)
    print(key)
    return 0
