"""What `bdscan` exits with; the same for every output format.

1 and 0 are the two answers, 2 says that there is none, 3 and 4 that nothing was scanned.
A finding beats an error: a folder with one backdoored and one broken model exits with 1.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    NO_BACKDOOR_FOUND = 0
    BACKDOOR_FOUND = 1
    INCOMPLETE = 2
    NOTHING_TO_SCAN = 3
    USAGE = 4
    INTERRUPTED = 130
    TERMINATED = 143


EXPLANATION = """\
Exit codes: 0 every model fully scanned, no backdoor found; 1 at least one backdoor found (beats
errors); 2 no finding, but an error, an unfinished scan or an inconclusive one; 3 nothing to scan;
4 usage or configuration; 130/143 interrupted."""
