"""`make demo`: from nothing to a trained model, through REST and the `studio` command only, as a user would.

On a terminal it keeps serving afterwards, until Ctrl-C. Otherwise its last line on standard output is one JSON object,
and everything it started is stopped.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio_sdk import StudioApi, StudioApiError, load_parameters

from examples.digits.client import data as digits_data
from examples.digits.client import model as digits_model
from examples.digits.demo_processes import ROOT, DemoFailed, Processes

CLIENTS = 3
ROUNDS = 5
ACCURACY_WANTED = 0.90
ONLINE_TIMEOUT_S = 90.0
SESSION_TIMEOUT_S = 900.0
ENDED = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class Person:
    """Who the demo is logged in as."""

    username: str
    password: str


def say(text: str) -> None:
    """One line for the person who watches."""
    print(text, flush=True)


def main() -> int:
    """Run the demo; the exit code."""
    started = time.monotonic()
    data = Path(os.environ.get("STUDIO_DATA") or ROOT / "data").expanduser().resolve()
    signal.signal(signal.SIGTERM, _interrupt)
    work = data / "demo"
    processes = Processes({"STUDIO_CONFIG_DIR": str(work / "login"), "STUDIO_DATA": str(data)})
    try:
        _prepare(data, work)
        say(f"Starting Studio with its data in {data}")
        addresses = processes.start_studio(data, work / "studio.log")
        result = run(processes, str(addresses["web"]), work)
        result |= {"seconds": round(time.monotonic() - started, 1), "data": str(data)}
        if not sys.stdout.isatty():
            processes.stop()
            print(json.dumps(result), flush=True)
            return 0
        _wait_for_ctrl_c()
    except KeyboardInterrupt:
        say("\nStopping.")
        return 130
    except (DemoFailed, StudioApiError) as failure:
        print(f"The demo failed. {failure} (Logs: {work} and {data / 'logs'}.)", file=sys.stderr, flush=True)
        return 1
    except OSError as failure:
        print(
            f"The demo failed: {failure}. Is {data} writable, and is the disk full?",
            file=sys.stderr,
            flush=True,
        )
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        processes.stop()
    say("Stopped.")
    return 0


def run(processes: Processes, url: str, work: Path) -> dict[str, Any]:
    """The main job; what the last line reports, but for time and place."""
    person = _person(url, work / "person.json")
    processes.environ["STUDIO_PASSWORD"] = person.password
    processes.studio("login", url, "--user", person.username)
    login = json.loads((work / "login" / "login.json").read_text(encoding="utf-8"))
    api = StudioApi(url, str(login["token"]))

    project = processes.studio("project", "create", "Handwritten digits")
    slug = str(project["slug"])
    processes.environ["STUDIO_PROJECT"] = slug
    say(f"User {person.username}, project {project['name']}: {url}/projects/{slug}/")

    say("Building the seed model (the first time, its Python environment is built too)")
    processes.run("studio", "run", "build", "--path", "client", cwd=work)
    processes.studio("package", "create", "--path", "client", "--output", "digits.tgz", cwd=work)
    package = processes.studio("package", "upload", "digits.tgz", cwd=work)
    seed = processes.studio("model", "upload", "seed.npz", cwd=work)
    say(f"Uploaded the compute package ({package['sha256'][:12]}…) and the seed model")

    digits_data.write_all(work / "data", CLIENTS)
    clients = {}
    for number in range(1, CLIENTS + 1):
        name = f"site-{number}"
        processes.studio("client", "create", name, "--output", f"{name}.yaml", cwd=work)
        command = [str(Path(sys.executable).with_name("studio")), "client", "start", "-in", f"{name}.yaml"]
        command += ["--data-path", f"data/client-{number}.npz"]
        log = work / f"{name}.log"
        clients[name] = (processes.start(command, log, cwd=work), log)

    def check() -> None:
        for name, (child, log) in clients.items():
            processes.check(child, name, log)

    _wait_online(api, slug, check)
    say(f"{CLIENTS} clients are connected, each with its own images")
    session = processes.studio(
        "session", "start", "--rounds", str(ROUNDS), "--seed-model", str(seed["id"]), "--package", str(package["id"]),
        "--min-clients", str(CLIENTS), "--min-updates", str(CLIENTS), "--validate",
    )  # fmt: skip
    ended = _follow(api, slug, str(session["id"]), check)

    final = work / "final.npz"
    processes.studio("model", "download", str(ended["current_model"]), "--output", str(final))
    x, y = digits_data.load(work / "data" / "test.npz")
    before = digits_model.measure(load_parameters(work / "seed.npz"), x, y)["accuracy"]
    after = digits_model.measure(load_parameters(final), x, y)["accuracy"]
    say("")
    say(
        f"Accuracy on {len(y)} images that no client saw: {before:.3f} before, {after:.3f} after {ROUNDS} rounds."
    )
    say(f"The pages: {url}/projects/{slug}/   log in as {person.username} with password {person.password}")
    say(f"The model: {final}")
    if after < ACCURACY_WANTED or after <= before:
        raise DemoFailed(
            f"The accuracy is below {ACCURACY_WANTED}; the clients' lines in their logs may say why."
        )
    return {
        "rounds": int(ended["rounds_done"]),
        "clients": CLIENTS,
        "seed_accuracy": round(before, 4),
        "accuracy": round(after, 4),
    }


def _prepare(data: Path, work: Path) -> None:
    """An empty work folder, but for who we are on this data directory."""
    data.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    work.chmod(0o700)
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "person.json":
            path.unlink()
    left_out = shutil.ignore_patterns("__pycache__", "*.npz")
    shutil.copytree(ROOT / "examples" / "digits" / "client", work / "client", ignore=left_out)


def _person(url: str, remembered: Path) -> Person:
    """The user of the last run on this data directory, or a new one."""
    with StudioApi(url) as api:
        if remembered.is_file():
            person = Person(**json.loads(remembered.read_text(encoding="utf-8")))
            try:
                api.rest.post(
                    "/api/v1/auth/token/",
                    {"login": person.username, "password": person.password, "name": "demo"},
                )
                return person
            except StudioApiError as refusal:
                if refusal.status not in (400, 401, 403):
                    raise
        person = Person(f"demo-{secrets.token_hex(3)}", secrets.token_urlsafe(12))
        api.sign_up(person.username, f"{person.username}@example.org", person.password)
    descriptor = os.open(remembered, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"username": person.username, "password": person.password}, file)
    return person


def _wait_online(api: StudioApi, slug: str, check: Any) -> None:
    deadline = time.monotonic() + ONLINE_TIMEOUT_S
    while True:
        check()
        online = sum(bool(row["online"]) for row in api.clients(slug))
        if online >= CLIENTS:
            return
        if time.monotonic() > deadline:
            raise DemoFailed(f"Only {online} of {CLIENTS} clients connected within {ONLINE_TIMEOUT_S:g} s.")
        time.sleep(0.3)


def _follow(api: StudioApi, slug: str, session_id: str, check: Any) -> dict[str, Any]:
    """The live table: a line per round as soon as every client has validated its model."""
    live = sys.stdout.isatty()
    say(f"\n{'round':>5}  {'clients':>7}  {'seconds':>7}  {'loss':>7}  {'accuracy':>8}")
    deadline = time.monotonic() + SESSION_TIMEOUT_S
    shown: set[str] = set()
    measured: set[str] = set()
    while True:
        check()
        session = api.session(slug, session_id)
        rounds = sorted(api.rounds(slug, session_id), key=lambda entry: (entry["number"], entry["attempt"]))
        for entry in rounds:
            key = str(entry["id"])
            if key not in shown and (session["status"] in ENDED or key in measured):
                shown.add(key)
                say(("\r\033[K" if live else "") + _row(entry))
            elif key not in measured and _is_measured(api, slug, entry):
                measured.add(key)  # this reading of its metrics may be older: shown with the next one
        if session["status"] == "finished":
            return session
        if session["status"] in ENDED:
            raise DemoFailed(f"The session ended as {session['status']}: {session['reason']}")
        if time.monotonic() > deadline:
            raise DemoFailed(
                f"The session did not end within {SESSION_TIMEOUT_S:g} s: {session['waiting_for']}"
            )
        if live:
            print(f"\r\033[K{_state(session, rounds)[:79]}", end="", flush=True)
        time.sleep(0.5)


def _state(session: dict[str, Any], rounds: list[dict[str, Any]]) -> str:
    """What happens now, as the table's last line."""
    if not rounds:
        return str(session["waiting_for"] or "starting")
    latest = rounds[-1]
    done = latest["assignments"].get("accepted", 0)
    return f"{latest['number']:>5}  {done}/{CLIENTS} updates, {session['waiting_for'] or latest['status']}"


def _is_measured(api: StudioApi, slug: str, entry: dict[str, Any]) -> bool:
    """Whether every client that took part has validated the round's model."""
    if entry["status"] != "finished":
        return False
    wanted = entry["assignments"].get("accepted", CLIENTS)
    return sum(1 for _ in api.model_validations(slug, str(entry["output_model"]))) >= wanted


def _row(entry: dict[str, Any]) -> str:
    metrics = entry.get("metrics") or {}
    loss, accuracy = (f"{metrics[name]:.4f}" if name in metrics else "-" for name in ("loss", "accuracy"))
    clients = entry["assignments"].get("accepted", 0)
    seconds = float((entry.get("timings") or {}).get("total_s", 0.0))
    return f"{entry['number']:>5}  {clients:>7}  {seconds:>7.2f}  {loss:>7}  {accuracy:>8}"


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _wait_for_ctrl_c() -> None:
    try:
        say("Studio keeps serving; Ctrl-C stops it and the clients.")
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("\nStopping.")


if __name__ == "__main__":
    sys.exit(main())
