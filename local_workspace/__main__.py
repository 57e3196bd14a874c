"""The command line of the local workspace: `python -m local_workspace VERB ...`.

Exit codes: 0 done, 1 the job failed, 2 bad usage or input, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from local_workspace.errors import UserError
from local_workspace.output import run_while_read

# Not the docstring, which Python -OO takes away.
DESCRIPTION = "The command line of the local workspace."
# verb: (module and function of the same name, what it does). A verb's module is imported when it is asked
# for: the command line must start at once, whatever the other verbs need.
VERBS = {
    "run": "run a command in a local workspace, an Azure ML workspace on this machine",
    "samples": "prepare model/ and data/: an ImageNet model and photos, from packages",
    "score": "run a deployment's YAML over a folder of files",
    "serve": "keep a local workspace until interrupted",
    "show": "print the labelled predictions of a run and draw a contact sheet",
    "state": "list, export or delete what local workspaces have kept",
    "sweep": "measure a deployment under many settings, and name the best that fits the memory",
}


def main(argv: list[str] | None = None) -> int:
    return run_while_read(lambda: run_verb(sys.argv[1:] if argv is None else argv))


def run_verb(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m local_workspace", description=DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        subparser = verbs.add_parser(verb, help=text, description=text)
        if verb in argv[:1]:
            import_module(f"local_workspace.{verb}").add_arguments(subparser)
    arguments = parser.parse_args(argv)
    try:
        return getattr(import_module(f"local_workspace.{arguments.verb}"), arguments.verb)(arguments)
    except UserError as error:
        print(f"error: {error.message}" + (f"\n\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
