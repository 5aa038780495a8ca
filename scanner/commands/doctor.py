"""`bdscan doctor`: versions and devices."""

from __future__ import annotations

from scanner import output
from scanner.commands.options import Format, one_of
from scanner.exit_codes import ExitCode


def doctor(format: Format = "text") -> int:
    """Show versions and which devices really work."""
    one_of("--format", format, ("text", "json"))
    from scanner.doctor import examine

    facts = examine()
    output.print_facts(facts, format)
    return ExitCode.INCOMPLETE if facts["problems"] else ExitCode.NO_BACKDOOR_FOUND
