"""What the published wheels offer, read from them by code: methods, commands, RPCs.

`enumerated("fedn")` runs this file inside that environment, where it imports nothing of ours:

    {"package": "fedn", "methods": {name: signature}, "commands": {"client list": {"options": […], "help": "…"}},
     "rpcs": {"/fedn.Combiner/TaskStream": {"request": …, "response": …, "client_streams": …, "server_streams": …}},
     "messages": {"fedn.Client": {"1": "role: enum fedn.Role", …}, …}, "enums": {"fedn.Role": {"CLIENT": 1, …}, …}}
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

# where in each package: the Python API's class, the command line's group, the descriptor
PLACES = {
    "fedn": ("fedn.network.api.client:APIClient", "fedn.cli", "fedn.network.grpc.fedn_pb2"),
    "scaleout": ("scaleoututil.api.client:Scaleout", "scaleout.cli", "scaleoututil.grpc.scaleout_pb2"),
}


def methods(place: str) -> dict[str, str]:
    """Every public method of a class with its signature, its constructor included."""
    module, _, name = place.partition(":")
    members = inspect.getmembers(getattr(importlib.import_module(module), name), inspect.isfunction)
    return {
        name: str(inspect.signature(function))
        for name, function in members
        if name == "__init__" or not name.startswith("_")
    }


def commands(place: str) -> dict[str, dict[str, Any]]:
    """Every command that ends a path of groups, under that path."""
    import click

    package = importlib.import_module(place)
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{place}.{found.name}")  # each registers its commands with the main group
    main = importlib.import_module(f"{place}.main").main
    listed: dict[str, dict[str, Any]] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        if isinstance(command, click.Group):
            for name, below in sorted(command.commands.items()):
                walk(below, (*path, name))
            return
        options = [option for parameter in command.params for option in parameter.opts]
        listed[" ".join(path)] = {"options": options, "help": (command.help or "").strip().split("\n")[0]}

    walk(main, ())
    return listed


def rpcs(file: Any) -> dict[str, dict[str, Any]]:
    """Every RPC of a descriptor (a FileDescriptorProto), under the path it has on the wire."""
    return {
        f"/{file.package}.{service.name}/{method.name}": {
            "request": method.input_type.lstrip("."),
            "response": method.output_type.lstrip("."),
            "client_streams": method.client_streaming,
            "server_streams": method.server_streaming,
        }
        for service in file.service
        for method in service.method
    }


def messages(file: Any) -> dict[str, dict[str, str]]:
    """Every message of a descriptor: its fields by number."""
    return {
        f"{file.package}.{message.name}": {str(field.number): _field(field) for field in message.field}
        for message in file.message_type
    }


def _field(field: Any) -> str:
    kinds = field.DESCRIPTOR.enum_types_by_name
    kind = kinds["Type"].values_by_number[field.type].name.removeprefix("TYPE_").lower()
    label = kinds["Label"].values_by_number[field.label].name.removeprefix("LABEL_").lower()
    label = "explicit" if field.proto3_optional else label
    return " ".join(word for word in (f"{field.name}:", label, kind, field.type_name.lstrip(".")) if word)


def enums(file: Any) -> dict[str, dict[str, int]]:
    """Every enum of a descriptor with its numbers."""
    return {f"{file.package}.{enum.name}": {v.name: v.number for v in enum.value} for enum in file.enum_type}


def on_the_wire(descriptor: Any) -> dict[str, Any]:
    """What two parties must agree on: the RPCs, messages and enums of a generated module's DESCRIPTOR."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto.FromString(descriptor.serialized_pb)
    return {"rpcs": rpcs(file), "messages": messages(file), "enums": enums(file)}


def enumerated(name: str, home: Path) -> dict[str, Any]:
    """All of it for `fedn` or `scaleout`, from its own environment."""
    from tests.compat.runners import run_in

    found: dict[str, Any] = run_in(name, Path(__file__), name, home=home)
    return found


if __name__ == "__main__":
    api, cli, generated = PLACES[sys.argv[1]]
    everything = {
        "package": sys.argv[1],
        "methods": methods(api),
        "commands": commands(cli),
        **on_the_wire(importlib.import_module(generated).DESCRIPTOR),
    }
    print(json.dumps(everything))
