"""Theodolite without a browser: inspect files, list the analyzers, run one.

Results go to files and stdout, progress and refusals to stderr. Exit status: 0 done; 2 refused, with one sentence
that says what to do; 130 stopped by Ctrl-C; 1 a mistake of ours. Torch is imported only where it is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, get_args

from analyzers import catalogue
from analyzers._base import Option
from probes.errors import ProbeError
from probes.specs import LOSSES, DataFormat

REFUSED, OUR_MISTAKE, STOPPED = 2, 1, 130


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        self.exit(REFUSED, f"{message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit status."""
    chosen = _parser().parse_args(arguments)
    commands: Mapping[str, Callable[[argparse.Namespace], int]] = {
        "inspect": _inspect,
        "list": _list,
        "run": _run,
        "example": _example,
    }
    try:
        return commands[chosen.command](chosen)
    except ProbeError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUR_MISTAKE
    except OSError as error:
        return _refuse(f"{error.filename or 'A file'}: {error.strerror or error}. Check the path and the free space.")
    except KeyboardInterrupt:
        say("Stopped.")
        return STOPPED
    except Exception as error:
        if chosen.traceback:
            raise
        say(f"A mistake of Theodolite's own: {type(error).__name__}: {error}. With --traceback it says where.")
        return OUR_MISTAKE


def say(text: str) -> None:
    """Write a line to stderr; control characters of hostile names are shown, not obeyed."""
    print(plain(text), file=sys.stderr, flush=True)


def plain(text: str) -> str:
    """Make a text safe for a terminal: one line of printable characters."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _refuse(message: str) -> int:
    say(message)
    return REFUSED


def _parser() -> Parser:
    parser = Parser(prog="python -m workspace", description="Theodolite without a browser.")
    parser.add_argument("--traceback", action="store_true", help="show where a mistake of ours happened")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inspect(commands.add_parser("inspect", help="say what checkpoints and data hold, and whether to trust them"))
    listing = commands.add_parser("list", help="list the analyzers and their options")
    listing.add_argument("--json", action="store_true")
    example = commands.add_parser("example", help="put the training of the example into the queue of a workspace")
    example.add_argument("--workspace", type=Path, help="its folder (else THEODOLITE_WORKSPACE, else ./workspace-data)")
    _add_run(commands.add_parser("run", help="run an analyzer and write its result to a folder"))
    return parser


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    add = inspect.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="a file or folder")
    add("--json", action="store_true", help="one JSON object a line for each file")
    add("--full", action="store_true", help="check every value of files above 1 GiB too")
    add("--weights", default="", metavar="SET", help="the set of weights that is meant, where there are several")
    add("--base", type=Path, metavar="FILE", help="the checkpoint that a LoRA adapter belongs to")


def _add_run(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    add("analyzer", metavar="ANALYZER")
    add("--checkpoint", action="append", required=True, type=Path, metavar="F", help="repeat it for several")
    add("--weights", default="", metavar="SET", help="the set of weights that is meant, where there are several")
    add("--base", type=Path, metavar="F", help="the checkpoint that LoRA adapters belong to")
    add("--model", default="", help="a name (resnet20, small_gpt:heads=2), a text (Sequential(...) or a file with "
        "print(model)) or a Hugging Face folder; recognised when left out")  # fmt: skip
    add("--data", action="append", default=[], metavar="D", help="a file or folder; an IDX pair is two of them")
    add("--test-data", action="append", default=[], metavar="D", help="test data, read as the data are")
    add("--test-split", default="", help="of test data that come in several parts (default: the test one)")
    add("--test-examples", type=int, default=0, metavar="N", help="the first N of the test data (default: all)")
    add("--loss", choices=(*LOSSES, "operator"), help="chosen by the targets when left out")
    add("--examples", type=int, default=0, metavar="N", help="the first N (default: all)")
    add("--shuffle", type=int, metavar="SEED", help="in an order by seed, not that of the file")
    add("--mean", nargs="+", default=[], metavar="M", help="for each channel, on the scale of 0 to 1")
    add("--std", nargs="+", default=[], metavar="S")
    add("--format", choices=get_args(DataFormat)[:-1], default="auto", help="of the data, where it is not seen rightly")
    add("--split", default="", help="of data that comes in several (default: the training one)")
    add(
        "--classes",
        nargs="+",
        default=[],
        metavar="C",
        help="the model's classes in its order, to map the data's by name",
    )
    add("--label", default="", help="the column or field that holds the target")
    add("--tokenizer", default="auto", help="auto, bytes, characters, or a tokenizer.json")
    add("--context", type=int, default=0, metavar="T", help="tokens in a sequence (default: the model's own)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--micro-batch", type=int, default=0, metavar="N", help="examples at a time (default: by memory)")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the analyzer, see list")
    add("--out", required=True, type=Path, metavar="DIR", help="a new folder, or that of an earlier run")


def _inspect(chosen: argparse.Namespace) -> int:
    from workspace.command_inspect import inspect

    return inspect(chosen, say, plain)


def _list(chosen: argparse.Namespace) -> int:
    for name, analyzer in catalogue().items():
        if chosen.json:
            options = [{**vars(each), "kind": each.kind.__name__} for each in analyzer.options()]
            about = {"title": analyzer.title, "question": analyzer.question, "version": analyzer.version}
            print(json.dumps({"analyzer": name, **about, "options": options}, ensure_ascii=False))
            continue
        print(f"{name}: {analyzer.title}\n  {analyzer.question}")
        for each in analyzer.options():
            print(f"    {each.name}={each.default} ({_allowed(each)}): {each.label}. {each.help}")
    return 0


def _allowed(option: Option) -> str:
    if option.choices:
        return ", ".join(map(str, option.choices))
    low, high = option.minimum, option.maximum
    if low is None and high is None:
        return option.kind.__name__
    ends = ("any" if end is None else f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (low, high))
    return f"{option.kind.__name__} {' to '.join(ends)}"


def _run(chosen: argparse.Namespace) -> int:
    from workspace.command_run import run

    run(chosen, say, lambda line: print(plain(line)))
    return 0


def _example(chosen: argparse.Namespace) -> int:
    from workspace import requests
    from workspace.jobs import Jobs
    from workspace.store import open_store

    job = Jobs(open_store(chosen.workspace)).enqueue(requests.example())
    print(f"The example is run {job.id}: {job.state}.")
    return 0
