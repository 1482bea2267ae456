"""`python -m examples.digits.compression`: what each compression of updates costs in accuracy, and saves in bytes.

Starts a Studio of its own and three clients (`studio_sdk.FederatedClient`, in threads of this process), trains the
digits once with every compression from the same seed model, by the same settings, and measures the last models on the
images that no client saw. "int8, error dropped" is int8 whose client forgets what rounding owes: what the error
feedback is for. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from studio_sdk import (
    ClientConfig,
    FederatedClient,
    StudioApi,
    StudioApiError,
    load_parameters,
    save_parameters,
)

from examples.digits.client import data as digits_data
from examples.digits.client import model as digits_model
from examples.digits.demo import ENDED, SESSION_TIMEOUT_S
from examples.digits.demo_processes import DemoFailed, Processes, last_lines

CLIENTS = 3
ONLINE_TIMEOUT_S = 60.0
DROPPED = "int8, error dropped"
COMPRESSIONS = ("none", "float16", "bfloat16", "int8", DROPPED)


def main(arguments: list[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description="Accuracy and bytes of every compression on the digits.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="for train.py")
    parser.add_argument(
        "--only", nargs="*", choices=COMPRESSIONS, default=COMPRESSIONS, metavar="COMPRESSION"
    )
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it started is stopped then, too
    with tempfile.TemporaryDirectory(prefix="digits-compression-") as folder, ExitStack() as exits:
        work = Path(folder)
        processes = Processes({"STUDIO_DATA": str(work / "studio")})
        exits.callback(processes.stop)
        try:
            print("Starting Studio and its clients", file=sys.stderr, flush=True)
            url = str(processes.start_studio(work / "studio", work / "studio.log")["web"])
            found = exits.enter_context(federation(url, work)).compare(
                asked.only, asked.rounds, asked.settings
            )
        except (DemoFailed, StudioApiError) as failure:
            said = last_lines((work / "studio.log").read_text(errors="replace"))
            print(f"The comparison failed. {failure} (Studio said: {said})", file=sys.stderr, flush=True)
            return 1
        except KeyboardInterrupt:
            return 130
    print(table(found))
    print(json.dumps(found), flush=True)
    return 0


class Federation:
    """A project with its clients online and its seed model uploaded."""

    def __init__(self, api: StudioApi, slug: str, work: Path) -> None:
        self.api, self.slug, self.work = api, slug, work
        save_parameters(digits_model.seed(), work / "seed.npz")
        self.seed = str(api.upload_model(slug, work / "seed.npz", "seed")["id"])

    def compare(
        self, compressions: list[str], rounds: int, client_settings: dict[str, Any]
    ) -> dict[str, Any]:
        """One session each, one after the other; figures by compression."""
        x, y = digits_data.load(self.work / "data" / "test.npz")
        before = digits_model.measure(digits_model.seed(), x, y)
        settings: dict[str, Any] = {}
        plain: dict[str, np.ndarray] | None = None
        for name in compressions:
            model, rows = self._train(name, rounds, client_settings)
            sent, plain_bytes = (sum(int(row[key]) for row in rows) for key in ("sent_bytes", "size_bytes"))
            measured = digits_model.measure(model, x, y)
            plain = plain if plain is not None else model
            settings[name] = {
                "accuracy": round(measured["accuracy"], 4),
                "loss": round(measured["loss"], 4),
                "bytes_up_per_round": round(sent / rounds),
                "saved": round(1 - sent / plain_bytes, 3),
                # how far from the first one's final model, as a share of what training changed in it
                "distance": round(_distance(model, plain) / _distance(plain, digits_model.seed()), 5),
            }
        return {
            "rounds": rounds,
            "clients": CLIENTS,
            "client_settings": client_settings,
            "parameters": sum(array.size for array in digits_model.seed().values()),
            "test_images": len(y),
            "seed_accuracy": round(before["accuracy"], 4),
            "compressions": settings,
        }

    def _train(
        self, name: str, rounds: int, client_settings: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """(the last model, the assignments whose updates were accepted)."""
        print(f"Training with {name}", file=sys.stderr, flush=True)
        session = self.api.create_session(
            self.slug, self.seed, name=name, rounds=rounds, min_clients=CLIENTS, validate=False,
            compression="int8" if name == DROPPED else name,
            client_settings=client_settings | ({"forget": True} if name == DROPPED else {}),
        )  # fmt: skip
        deadline = time.monotonic() + SESSION_TIMEOUT_S
        while session["status"] not in ENDED:
            if time.monotonic() > deadline:
                raise DemoFailed(f"The session did not end in time: {session['waiting_for']}")
            time.sleep(0.2)
            session = self.api.session(self.slug, str(session["id"]))
        if session["status"] != "finished":
            raise DemoFailed(f"The session ended as {session['status']}: {session['reason']}")
        rows = self.api.assignments(self.slug, str(session["id"]))
        accepted = [row for row in rows if row["status"] == "accepted"]
        target = self.work / "model.npz"
        self.api.download_model(self.slug, str(session["current_model"]), target)
        return load_parameters(target), accepted


@contextmanager
def federation(url: str, work: Path) -> Iterator[Federation]:
    """A new account and project on this Studio, and its three clients; they end with it."""
    digits_data.write_all(work / "data", CLIENTS)
    name, password = f"digits-{secrets.token_hex(3)}", secrets.token_urlsafe(12)
    with StudioApi(url) as anonymous:
        anonymous.sign_up(name, f"{name}@example.org", password)
        token = str(anonymous.log_in(name, password, "compression")["token"])
    with StudioApi(url, token) as api, ExitStack() as exits:
        slug = str(api.create_project("Compression")["slug"])
        folders = [work / f"client-{number}" for number in range(1, CLIENTS + 1)]
        for number, folder in enumerate(folders, start=1):
            config = ClientConfig.of(api.create_client(slug, folder.name)["config"])
            images = digits_data.load(work / "data" / f"client-{number}.npz")
            client = FederatedClient(config, work_dir=folder, say=lambda _line: None)
            client.set_train(trainer(images, folder))
            thread = Thread(target=client.run, daemon=True)
            thread.start()
            exits.callback(thread.join, 10)
            exits.callback(client.stop)
        deadline = time.monotonic() + ONLINE_TIMEOUT_S
        while sum(bool(row["online"]) for row in api.clients(slug)) < CLIENTS:
            if time.monotonic() > deadline:
                raise DemoFailed(f"Not all {CLIENTS} clients connected within {ONLINE_TIMEOUT_S:g} s.")
            time.sleep(0.2)
        yield Federation(api, slug, work)


def trainer(images: tuple[np.ndarray, np.ndarray], folder: Path) -> Callable[..., Any]:
    """The package's own training, on these images. With the setting `forget`, what rounding owes is dropped first."""
    sys.path.insert(
        0, str(Path(digits_model.__file__).parent)
    )  # train.py is a command: it imports its neighbours
    try:
        from train import train  # type: ignore[import-not-found]  # a file of the package, found beside it
    finally:
        del sys.path[0]

    def trained(parameters: dict[str, Any], settings: dict[str, Any]) -> Any:
        if settings.get("forget"):
            for owed in (folder / "debts").iterdir():
                owed.unlink()
        return train(parameters, *images, settings)

    return trained


def _distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(one[name].astype(float) - other[name]).sum() for name in one)))


def table(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| compression | accuracy | loss | bytes up per round | saved | distance from none |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in found["compressions"].items():
        lines.append(
            f"| {name} | {row['accuracy']:.3f} | {row['loss']:.4f} | {row['bytes_up_per_round']:,} "
            f"| {row['saved']:.0%} | {row['distance']:.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
