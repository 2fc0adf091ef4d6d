"""The command line: `pquant-fx demo | check | compile | verify | import | estimate | rtl | synthesize | config template |
config presets | config show | passes`.

Results go to standard output, progress and errors to standard error. Exit code 0: fine; 1: problems were found, or engines
differ; 2: wrong usage, or an error of ours, printed with code, place and remedy.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from pquant_fx.cli.commands import check, compile_, demo, passes, verify
from pquant_fx.cli.config import presets, show, template
from pquant_fx.cli.imports import import_
from pquant_fx.cli.output import as_json, problem_data, problem_text
from pquant_fx.cli.rtl import estimate, rtl, synthesize
from pquant_fx.errors import PQuantError, PQuantWarning

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with `arguments` (default: those of the process) and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    shows_traceback = "--traceback" in given
    given = [argument for argument in given if argument != "--traceback"]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default", PQuantWarning)
            try:
                _app()(args=given, prog_name="pquant-fx")
            finally:
                _tell(caught)
    except PQuantError as error:
        if shows_traceback:
            raise
        if "--json" in given:
            as_json({"ok": False, "problems": problem_data(error.problems)})
        else:
            print("\n".join(problem_text(problem) for problem in error.problems), file=sys.stderr)
        sys.exit(2)


def _tell(caught: list[warnings.WarningMessage]) -> None:
    for warning in caught:
        ours = issubclass(warning.category, PQuantWarning)
        foreign = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno).rstrip()
        print(f"warning: {warning.message}" if ours else foreign, file=sys.stderr)


def _app() -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="From a PyTorch model to bit-exact FPGA firmware. Example: pquant-fx compile mynet:build --data train.npz --out build/net",
    )
    app.callback()(_options)
    app.command("demo", short_help="The whole way on handwritten digits.")(demo)
    app.command("check", short_help="List what stands between a model and a target.")(check)
    app.command("compile", short_help="Compile, calibrate or train, and write the files.")(compile_)
    app.command("verify", short_help="Compare the engines bit for bit.")(verify)
    app.command("estimate", short_help="LUTs, flip-flops and latency before any tool has run.")(estimate)
    app.command("rtl", short_help="Write Verilog or VHDL and simulate it.")(rtl)
    app.command("synthesize", short_help="Count LUTs, flip-flops and logic depth with yosys.")(synthesize)
    app.command("import", short_help="Read a QONNX file of another tool.")(import_)
    app.command("passes", short_help="List the passes of compile and freeze.")(passes)
    config = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Write and look at configurations. Example: pquant-fx config show fixed8"
    )
    config.command("template", short_help="Write a configuration that names every layer.")(template)
    config.command("presets", short_help="List the presets and what each is for.")(presets)
    config.command("show", short_help="Print every setting with its value.")(show)
    app.add_typer(config, name="config")
    return app


def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the Python traceback of an error (anywhere on the line).")] = False,
) -> None:
    """Nothing happens here: main has read the option, wherever it stood."""
