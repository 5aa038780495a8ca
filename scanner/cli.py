"""The command line. Standard output carries the report and nothing else.

torch and ONNX Runtime are imported by the commands, after the arguments are parsed, so that
`bdscan --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from scanner import output
from scanner.commands import config, doctor, export, inspect, report, samples, scan
from scanner.errors import BdscanError
from scanner.exit_codes import EXPLANATION, ExitCode

app = typer.Typer(
    help="Tell whether an image classifier in an ONNX file hides a backdoor.\n\n"
    "`bdscan MODEL... --clean-dir DIR` is `bdscan scan MODEL... --clean-dir DIR`.",
    epilog=EXPLANATION,
    add_completion=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's tables cut option names on a narrow terminal
)
app.command(epilog=EXPLANATION)(scan.scan)
app.command(epilog=EXPLANATION)(samples.samples)
app.command()(inspect.inspect)
app.command()(export.export)
app.command()(doctor.doctor)
app.command()(report.report)
app.command()(config.config)
COMMANDS = ("scan", "samples", "inspect", "export", "doctor", "report", "config")
_GLOBAL_OPTIONS = ("--help", "--version", "--install-completion", "--show-completion")


class Terminated(BaseException):
    """SIGTERM arrived."""


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> int:
    if version:
        from scanner.describe import tool

        output.print_text(f"bdscan {tool()['version']}")
    return ExitCode.NO_BACKDOOR_FOUND


def with_command(arguments: Sequence[str]) -> list[str]:
    """Put `scan` in front of arguments that name no command."""
    first = arguments[0] if arguments else "--help"
    if first in COMMANDS or first.split("=")[0] in _GLOBAL_OPTIONS:
        return list(arguments)
    return ["scan", *arguments]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Nothing escapes: Python itself would exit with 1, which scripts read as "backdoor found".
    """
    try:
        output.prepare_streams()
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Terminated:
        return ExitCode.TERMINATED
    except BaseException:  # telling an error failed too
        return ExitCode.INCOMPLETE


def _run(given: list[str]) -> int:
    """`main`, with every error told."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if not given:
            app(["--help"], standalone_mode=False, prog_name="bdscan")
            return ExitCode.USAGE
        result: Any = app(with_command(given), standalone_mode=False, prog_name="bdscan")
        if result == ExitCode.INTERRUPTED:  # Typer turns Ctrl-C into this number
            raise KeyboardInterrupt
        return result if isinstance(result, int) else ExitCode.NO_BACKDOOR_FOUND
    except BdscanError as error:
        return output.fail(given, error.reason, str(error), error.exit_code)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        return output.fail(given, "usage", message, ExitCode.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return output.fail(given, "interrupted", "interrupted", ExitCode.INTERRUPTED)
    except Terminated:
        return output.fail(given, "terminated", "terminated", ExitCode.TERMINATED)
    except Exception as error:
        if os.environ.get("BDSCAN_DEBUG"):
            traceback.print_exc()
        message = f"internal error: {error!r}; set BDSCAN_DEBUG=1 to see where, and report it"
        return output.fail(given, "internal_error", message, ExitCode.INCOMPLETE)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
