#!/usr/bin/env python3
"""Studio's command line for operators."""

import os
import sys


def take_data_directory(arguments: list[str]) -> None:
    """`--data DIR` is STUDIO_DATA: settings are read before a command sees its options, and open that folder."""
    for position, argument in enumerate(arguments):
        if argument == "--data" and position + 1 < len(arguments):
            os.environ["STUDIO_DATA"] = arguments[position + 1]
        elif argument.startswith("--data="):
            os.environ["STUDIO_DATA"] = argument.partition("=")[2]
    folder = os.environ.get("STUDIO_DATA")
    if not folder:
        return
    try:
        os.makedirs(os.path.expanduser(folder), mode=0o700, exist_ok=True)
    except OSError as error:
        print(
            f"The data directory {folder} cannot be used: {error.strerror}. Name another with --data.",
            file=sys.stderr,
        )
        sys.exit(2)


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "studio.settings")
    if sys.argv[1:2] in (["up"], ["combiner"]):
        take_data_directory(sys.argv[2:])
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
