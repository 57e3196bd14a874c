"""`az`: the verbs of `az ml` that this repository's flow and its readers use, on knack, az's own framework.

Flags, output forms and exit codes are those of the real az: 0 done, 1 error, 2 usage, 3 not found.
The answer goes to stdout, everything else to stderr; 141 where nobody reads them. The verbs are the
functions of az_account.py, az_assets.py, az_batch.py and az_jobs.py.
"""

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from knack.arguments import ArgumentsContext
from knack.cli import CLI
from knack.commands import CLICommandsLoader, CommandGroup
from knack.help_files import helps
from knack.log import get_logger
from knack.parser import CLICommandParser

from local_workspace import az_account
from local_workspace.output import run_while_read

# group -> module with its functions, and the verbs; `az ml job list-jobs` is the function `job_list_jobs`
COMMANDS = {
    "": ("az_account", "configure version"),
    "account": ("az_account", "show get-access-token"),
    "extension": ("az_account", "list show"),
    "ml model": ("az_assets", "create list show"),
    "ml data": ("az_assets", "create list show"),
    "ml compute": ("az_assets", "create show"),
    "ml batch-endpoint": ("az_batch", "create show update delete list invoke list-jobs"),
    "ml batch-deployment": ("az_batch", "create show list delete"),
    "ml job": ("az_jobs", "show stream list download cancel"),
}
GROUPS = {
    "account": "The subscription that is in use",
    "extension": "The extensions of az",
    "ml": "Azure Machine Learning",
    "ml model": "Models",
    "ml data": "Data assets",
    "ml compute": "Compute clusters",
    "ml batch-endpoint": "Batch endpoints",
    "ml batch-deployment": "Deployments of batch endpoints",
    "ml job": "Jobs",
}
CONFIRMED = {"ml batch-endpoint delete", "ml batch-deployment delete"}  # ask, unless --yes

# scope -> argument -> how it differs from what its function's signature says (a narrower scope wins)
ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "": {
        "name": {"options_list": ["--name", "-n"], "help": "Its name."},
        "file": {"options_list": ["--file", "-f"], "help": "YAML file that defines it."},
        "version": {"options_list": ["--version", "-v"], "help": "Its version."},
        "label": {"options_list": ["--label", "-l"], "help": "Label of a version, such as latest."},
        "path": {"options_list": ["--path", "-p"], "help": "File or folder to upload, or a URI."},
        "type": {"options_list": ["--type", "-t"], "help": "Its type, such as custom_model or uri_folder."},
        "description": {"options_list": ["--description", "-d"], "help": "What it is for."},
        "changes": {
            "options_list": ["--set"],
            "nargs": "+",
            "action": "extend",
            "metavar": "PROPERTY=VALUE",
            "help": "Properties to set over those of the file, such as settings.mini_batch_size=4.",
        },
        "defaults": {"options_list": ["--defaults", "-d"], "nargs": "+", "help": "NAME=VALUE pairs."},
        "list_defaults": {"options_list": ["--list-defaults", "-l"], "help": "List the defaults."},
        "scope": {"nargs": "+", "help": "Scopes of the token."},
        "resource": {"help": "Audience of the token."},
        "tenant": {"options_list": ["--tenant", "-t"], "help": "Tenant of the token."},
    },
    "ml": {
        "endpoint_name": {"options_list": ["--endpoint-name", "-e"], "help": "Name of the batch endpoint."},
    },
    "ml compute create": {
        "size": {"help": "Virtual machine size of an instance."},
        "min_instances": {"type": int, "help": "Instances that are kept while no job runs."},
        "max_instances": {"type": int, "help": "Instances that jobs may have."},
    },
    "ml batch-endpoint invoke": {
        "input": {"help": "Data to score: azureml:NAME@latest, a URI, or a file or folder of this machine."},
        "input_type": {"choices": ["uri_file", "uri_folder"], "help": "What the input is."},
        "deployment_name": {
            "options_list": ["--deployment-name", "-d"],
            "help": "Instead of the default one.",
        },
        "mini_batch_size": {
            "options_list": ["--mini-batch-size", "-m"],
            "type": int,
            "help": "Files a run().",
        },
        "instance_count": {
            "options_list": ["--instance-count", "-c"],
            "type": int,
            "help": "Instances to use.",
        },
        "output_path": {"help": "azureml://datastores/NAME/paths/FOLDER for the predictions."},
        "job_name": {"help": "Name of the job, instead of a generated one."},
        "experiment_name": {"help": "Experiment that the job is filed under."},
    },
    "ml batch-deployment create": {
        "set_default": {"help": "Make it the endpoint's default deployment."},
        "skip_script_validation": {"help": "Do not check that the scoring script exists."},
    },
    "ml job": {
        "web": {"options_list": ["--web", "-e"], "help": "Open the job's page in the browser."},
        "parent_job_name": {"options_list": ["--parent-job-name", "-p"], "help": "List this job's children."},
        "max_results": {
            "options_list": ["--max-results", "-r"],
            "type": int,
            "help": "List no more than these.",
        },
        "download_path": {"options_list": ["--download-path", "-p"], "help": "Folder that it is put in."},
        "output_name": {"help": "Output to download, such as score."},
        "all": {"help": "Download the outputs and the logs."},
    },
}
# what every `az ml` command has; the defaults are those of `az configure --defaults`
WORKSPACE_ARGUMENTS = {
    "resource_group_name": {
        "options_list": ["--resource-group", "-g"],
        "configured_default": "group",
        "required": True,
        "help": "Name of the resource group.",
    },
    "workspace_name": {
        "options_list": ["--workspace-name", "-w"],
        "configured_default": "workspace",
        "required": True,
        "help": "Name of the workspace.",
    },
    "subscription": {"options_list": ["--subscription"], "default": None, "help": "Id of the subscription."},
}

helps.update({group: json.dumps({"type": "group", "short-summary": text}) for group, text in GROUPS.items()})


def open_workspace(arguments: dict[str, Any]) -> Any:
    from local_workspace.az_ml import (
        open_workspace,
    )  # two seconds of imports, only for the commands of `az ml`

    return open_workspace(arguments)


class Commands(CLICommandsLoader):
    """Fills knack's tables from those above."""

    def __init__(self, cli_ctx: CLI) -> None:
        super().__init__(cli_ctx, excluded_command_handler_args=["client"])

    def load_command_table(self, args: Sequence[str]) -> dict[str, Any]:
        for group, (module, verbs) in COMMANDS.items():
            nouns = group.replace("-", "_").removeprefix("ml ").split()
            functions = f"local_workspace.{module}#{'_'.join([*nouns, '{}'])}"
            factory = open_workspace if group.startswith("ml ") else None
            with CommandGroup(
                self, group, functions, client_factory=factory, deprecate_info=None
            ) as commands:
                for verb in verbs.split():
                    confirmed = f"{group} {verb}" in CONFIRMED
                    commands.command(verb, verb.replace("-", "_"), confirmation=confirmed)
        return super().load_command_table(args)

    def load_arguments(self, command: str) -> None:
        for scope, arguments in ARGUMENTS.items():
            with ArgumentsContext(self, scope) as context:
                for name, settings in arguments.items():
                    context.argument(name, **settings)
        if command.startswith("ml ") and command in self.command_table:
            with ArgumentsContext(self, command) as context:
                for name, settings in WORKSPACE_ARGUMENTS.items():
                    # knack's extra(), not Django's, which takes SQL
                    context.extra(name, **settings)  # noqa: S610  # nosec B610
                    context.argument(name, **settings)
        super().load_arguments(command)


class Parser(CLICommandParser):
    """knack's parser, which tells a wrong flag as az does."""

    def error(self, message: str) -> NoReturn:
        get_logger(__name__).error("%s: %s", self.prog, message)
        self.exit(2, f"To learn more about it: {self.prog} --help\n")


class Az(CLI):
    """knack's command line with az's errors: one `ERROR:` line, and 3 for what is not there."""

    def exception_handler(self, ex: Exception) -> int:
        if isinstance(ex, BrokenPipeError):  # `az ... | head` has read enough
            raise ex
        get_logger(__name__).error(str(ex).strip() or type(ex).__name__)
        logging.getLogger(__name__).debug("Where it was raised:", exc_info=ex)  # shown by --debug
        return 3 if is_not_found(ex) else 1

    def get_cli_version(self) -> str:
        return json.dumps(az_account.version(), indent=2)

    def get_runtime_version(self) -> str:
        return ""


def is_not_found(error: Exception) -> bool:
    """By the service's status, or by the SDK's own word for it."""
    return getattr(error, "status_code", None) == 404 or str(getattr(error, "error_type", "")).endswith(
        "RESOURCE_NOT_FOUND"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    az = Az(
        cli_name="az",
        config_dir=str(az_account.config_folder()),
        config_env_var_prefix="AZURE",
        out_file=sys.stdout,
        commands_loader_cls=Commands,
        parser_cls=Parser,
    )
    return run_while_read(lambda: az.invoke(list(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    sys.exit(main())
