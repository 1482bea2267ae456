"""`studio`: exit codes 0 done, 1 other, 2 usage, 3 refused, 4 not found, 5 no connection; `client start` has
its own."""

from __future__ import annotations

import sys

import click

from ..errors import SdkError
from ..version import VERSION
from . import client, event, login, model, package, project, run, session


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="studio")
def cli() -> None:
    """Federated learning with Studio: projects, packages, clients and sessions."""


for command in (
    login.login,
    project.project,
    package.package,
    run.run,
    client.client,
    session.session,
    model.model,
    event.event,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """The console script: every error is one line and an exit code."""
    try:
        code = cli.main(args=arguments, prog_name="studio", standalone_mode=False)
    except click.UsageError as error:
        usage = error.ctx.command_path if error.ctx else "studio"
        _end(f"{error.format_message()} See `{usage} --help`.", 2)
    except click.ClickException as error:
        _end(error.format_message(), error.exit_code)
    except SdkError as error:
        _end(error.message, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end("Stopped.", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _end(f"{error.filename or 'A file'}: {error.strerror or error}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _end(sentence: str, code: int) -> None:
    click.echo(" ".join(sentence.split()), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
