"""Find out whether training works on this machine: ``python -m llmcls.doctor [RECIPE] [key=value ...]``.

Checks the driver, the libraries, the compiler and the disk, then computes with a small model of the recipe's
architecture on the device itself. Prints one line per check, ends with "ready" or with what to do, and writes
doctor.json, to attach to a bug report. The exit code is 1 if training would not work as it should.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from llmcls.common.command import begin_imports, command_parser, run_command

if __name__ == "__main__":
    # The imports below take seconds.
    begin_imports()

from rich.console import Console

from llmcls.common.files import write_json
from llmcls.common.user_error import UserError
from llmcls.diagnosis.checks import CHECKS
from llmcls.diagnosis.findings import Subject
from llmcls.diagnosis.isolation import run_isolated
from llmcls.diagnosis.report import document, show, verdict
from llmcls.recipe.load import load_recipe


def main(argv: list[str] | None = None) -> None:
    """Run the checks, show and write what they found; the exit code is 1 if there is a fault."""
    parser = command_parser("doctor", "Find out whether training works on this machine.")
    parser.add_argument("recipe", nargs="?", help="a recipe YAML file; a small Llama stands in if left out")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="values that replace the recipe's"
    )
    parser.add_argument("--only", action="append", metavar="CHECK", help="run this check only; can be repeated")
    parser.add_argument("--output", help="file to write; doctor.json in exp.output_root or here if left out")
    arguments = parser.parse_intermixed_args(argv)
    unknown = set(arguments.only or []) - {check.name for check in CHECKS}
    if unknown:
        known = ", ".join(check.name for check in CHECKS)
        raise UserError(f"--only: {', '.join(sorted(unknown))} is not a check; the checks are {known}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("doctor starts the processes that it needs by itself; run it without a launcher such as srun")
    checks = [check for check in CHECKS if not arguments.only or check.name in arguments.only]
    recipe = load_recipe(arguments.recipe, arguments.overrides) if arguments.recipe else None
    with tempfile.TemporaryDirectory(prefix="llmcls-doctor-", ignore_cleanup_errors=True) as folder:
        subject = Subject(recipe, Path(folder))
        results = show(run_isolated(checks, subject), Console())
        report = document(results, subject)
    output = Path(arguments.output) if arguments.output else subject.output_root / "doctor.json"
    try:
        write_json(output, report)
        print(f"written: {output}")
    except OSError as error:
        print(f"{output} cannot be written ({error.strerror}); choose a file with --output", file=sys.stderr)
    print("\n".join(verdict(results)), flush=True)
    if not report["ready"]:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
