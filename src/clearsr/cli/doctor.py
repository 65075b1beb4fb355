"""`clearsr doctor`: is all there that upscaling needs, and what else is there or could be."""

import json
from argparse import ArgumentParser, Namespace

EPILOG = """\
Exit code 0: `clearsr upscale` has what it needs. 1: it has not; the lines marked with ! say why.
A line marked with - is something optional that is not installed, and how to get it.

examples:
  clearsr doctor
  clearsr doctor --json
"""
_MARKS = {"ok": " ", "absent": "-", "problem": "!"}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the flags."""
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: Namespace) -> int:
    """Print what was found; 1 if there is a problem."""
    from clearsr.cli.terminal import busy, write_line
    from clearsr.doctor import examine

    with busy("looking", args.quiet):
        findings = examine()
    problems = [finding for finding in findings if finding.status == "problem"]
    if args.json:
        report = {"ok": not problems, "findings": [finding.as_dict() for finding in findings]}
        print(json.dumps(report, indent=2))
        return 1 if problems else 0
    part = ""
    width = max(len(finding.name) for finding in findings)
    for finding in problems if args.quiet else findings:
        if finding.part != part:
            write_line(finding.part if not part else f"\n{finding.part}")
            part = finding.part
        remedy = "" if finding.remedy is None else f"; {finding.remedy}"
        write_line(f"{_MARKS[finding.status]} {finding.name:{width}}  {finding.text}{remedy}")
    if not args.quiet:
        count = len(problems)
        verdict = "all that upscaling needs is there"
        write_line(f"\n{verdict if not count else f'{count} problem' + 's' * (count > 1)}")
    return 1 if problems else 0
