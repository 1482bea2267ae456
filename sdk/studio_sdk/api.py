"""Studio's REST API from Python: one method per route.

    api = StudioApi("https://studio.example", token="stu_…")
    project = api.create_project("Digits")
    for model in api.models(project["slug"]): ...

Every method raises StudioApiError(code, message, status). Rows are dictionaries as the server sends them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from .rest import Json, Rest, RetryRule

V1 = "/api/v1"


class StudioApi:
    """One server as one user (or project token). `timeout_s` is per call; use one object per thread."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 30.0,
        ca_cert: str | Path | None = None,
        retry: RetryRule | None = None,
    ) -> None:
        self.rest = Rest(url, token, timeout_s=timeout_s, ca_cert=ca_cert, retry=retry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.rest.close()

    # ---- who am I, accounts, tokens

    def me(self) -> Json:
        """The user, token, project or client that this token stands for."""
        return self.rest.get(f"{V1}/me/")

    def log_in(self, login: str, password: str, name: str) -> Json:
        """A new user token: {"token", "expires_at"}. `login` is a user name or an e-mail address."""
        return self.rest.post(f"{V1}/auth/token/", {"login": login, "password": password, "name": name})

    def sign_up(self, username: str, email: str, password: str) -> Json:
        """A new account, where the server allows it."""
        return self.rest.post(
            f"{V1}/accounts/", {"username": username, "email": email, "password": password}, creates=True
        )

    def tokens(self) -> Iterator[Json]:
        """My tokens, without their secrets."""
        return self.rest.pages(f"{V1}/tokens/")

    def token(self, token_id: str) -> Json:
        """One of my tokens."""
        return self.rest.get(f"{V1}/tokens/{token_id}/")

    def create_token(self, name: str, kind: str = "user", **fields: Any) -> Json:
        """A new token; its secret is in this answer only, under "token"."""
        return self.rest.post(f"{V1}/tokens/", {"name": name, "kind": kind, **fields}, creates=True)

    def rotate_token(self, token_id: str) -> Json:
        """A new secret for a token; the old one ends."""
        return self.rest.post(f"{V1}/tokens/{token_id}/rotate/", creates=True)

    def revoke_token(self, token_id: str) -> None:
        """End a token; its streams are closed."""
        self.rest.delete(f"{V1}/tokens/{token_id}/")

    # ---- projects and members

    def projects(self) -> Iterator[Json]:
        """My projects and those shared with me."""
        return self.rest.pages(f"{V1}/projects/")

    def project(self, slug: str) -> Json:
        """One project."""
        return self.rest.get(_of(slug))

    def create_project(self, name: str, description: str = "") -> Json:
        """A new project of mine."""
        return self.rest.post(f"{V1}/projects/", {"name": name, "description": description}, creates=True)

    def update_project(self, slug: str, **fields: Any) -> Json:
        """Change name, description or settings."""
        return self.rest.patch(_of(slug), fields)

    def delete_project(self, slug: str, *, confirm: str) -> None:
        """Delete a project and all in it; `confirm` is its name."""
        self.rest.delete(_of(slug), {"confirm": confirm})

    def members(self, slug: str) -> Iterator[Json]:
        """Who is in the project."""
        return self.rest.pages(_of(slug, "members"))

    def add_member(self, slug: str, email: str, role: str = "member") -> Json:
        """Add or invite a person by e-mail address; role: owner, admin, member or viewer."""
        return self.rest.post(_of(slug, "members"), {"email": email, "role": role}, creates=True)

    def change_member(self, slug: str, member_id: str, role: str) -> Json:
        """Change a member's role."""
        return self.rest.patch(_of(slug, "members", member_id), {"role": role})

    def remove_member(self, slug: str, member_id: str) -> None:
        """Take a member out of the project."""
        self.rest.delete(_of(slug, "members", member_id))

    def invitations(self, slug: str) -> Iterator[Json]:
        """Invitations nobody has accepted yet."""
        return self.rest.pages(_of(slug, "invitations"))

    def withdraw_invitation(self, slug: str, invitation_id: str) -> None:
        """Take an invitation back."""
        self.rest.delete(_of(slug, "invitations", invitation_id))

    def accept_invitation(self, secret: str) -> Json:
        """Join a project by the secret of an invitation."""
        return self.rest.post(f"{V1}/invitations/accept/", {"secret": secret})

    # ---- compute packages

    def packages(self, slug: str) -> Iterator[Json]:
        """The project's compute packages."""
        return self.rest.pages(_of(slug, "packages"))

    def package(self, slug: str, package_id: str) -> Json:
        """One compute package."""
        return self.rest.get(_of(slug, "packages", package_id))

    def upload_package(self, slug: str, file: Path, name: str, description: str = "") -> Json:
        """Upload a `.tgz` made by `studio package create`."""
        fields = {"name": name, "description": description}
        return self.rest.upload(_of(slug, "packages"), fields, file, "package.tgz")

    def delete_package(self, slug: str, package_id: str) -> None:
        """Delete a package that no session uses."""
        self.rest.delete(_of(slug, "packages", package_id))

    def download_package(self, slug: str, package_id: str, target: Path, *, sha256: str | None = None) -> str:
        """Download a package; returns its sha256. A client token may do this too."""
        return self.rest.download(_of(slug, "packages", package_id, "download"), target, sha256=sha256)

    # ---- models and what was measured on them

    def models(self, slug: str, **filters: Any) -> Iterator[Json]:
        """The model trail."""
        return self.rest.pages(_of(slug, "models"), filters)

    def model(self, slug: str, model_id: str) -> Json:
        """One model."""
        return self.rest.get(_of(slug, "models", model_id))

    def upload_model(self, slug: str, file: Path, name: str) -> Json:
        """Upload a seed model, `.npz` or `.safetensors`."""
        suffix = ".npz" if file.suffix == ".npz" else ".safetensors"
        return self.rest.upload(_of(slug, "models"), {"name": name}, file, f"{file.stem}{suffix}")

    def download_model(
        self, slug: str, model_id: str, target: Path, *, file_format: str = "safetensors"
    ) -> str:
        """Download a model as safetensors (checked against the model's sha256) or npz; returns the file's sha256."""
        expected = self.model(slug, model_id).get("sha256") if file_format == "safetensors" else None
        path = _of(slug, "models", model_id, "download") + f"?format={file_format}"
        return self.rest.download(path, target, sha256=expected)

    def model_validations(self, slug: str, model_id: str) -> Iterator[Json]:
        """What each client measured on a model, with its whole JSON."""
        return self.rest.pages(_of(slug, "models", model_id, "validations"))

    def model_lineage(self, slug: str, model_id: str) -> Iterator[Json]:
        """The model's parents, back to the seed."""
        return self.rest.pages(_of(slug, "models", model_id, "lineage"))

    def validations(self, slug: str, **filters: Any) -> Iterator[Json]:
        """Validations by `model`, `session` or `client`."""
        return self.rest.pages(_of(slug, "validations"), filters)

    def metrics(self, slug: str, **filters: Any) -> Iterator[Json]:
        """Single numbers by `session`, `name`, `source`, `model` or `client`."""
        return self.rest.pages(_of(slug, "metrics"), filters)

    # ---- clients and combiners

    def clients(self, slug: str, **filters: Any) -> Iterator[Json]:
        """The project's clients: who is online, on which combiner, doing what."""
        return self.rest.pages(_of(slug, "clients"), filters)

    def client(self, slug: str, client_id: str) -> Json:
        """One client."""
        return self.rest.get(_of(slug, "clients", client_id))

    def create_client(self, slug: str, name: str) -> Json:
        """A new client; "config_yaml" is its client.yaml, whose token is shown only here."""
        return self.rest.post(_of(slug, "clients"), {"name": name}, creates=True)

    def update_client(self, slug: str, client_id: str, **fields: Any) -> Json:
        """Rename a client."""
        return self.rest.patch(_of(slug, "clients", client_id), fields)

    def delete_client(self, slug: str, client_id: str) -> None:
        """Delete a client; its stream is closed."""
        self.rest.delete(_of(slug, "clients", client_id))

    def new_client_config(self, slug: str, client_id: str) -> Json:
        """A new config with a new token; the old token ends."""
        return self.rest.post(_of(slug, "clients", client_id, "config"), creates=True)

    def enrol(self, name: str) -> Json:
        """A new client by an enrolment token; answers as `create_client`."""
        return self.rest.post(f"{V1}/client/enrol/", {"name": name}, creates=True)

    def client_self(self) -> Json:
        """With a client token: who it is, and the combiners to connect to, best first."""
        return self.rest.get(f"{V1}/client/")

    def combiners(self, slug: str) -> Iterator[Json]:
        """The combiners that serve the project."""
        return self.rest.pages(_of(slug, "combiners"))

    def draining(self, combiner: str) -> Json:
        """For operators of the Studio: whether the combiner of that name is being drained, and what it still has."""
        return self.rest.get(f"{V1}/site/combiners/{quote(combiner, safe='')}/")

    def drain(self, combiner: str) -> Json:
        """For operators: it gives its clients to others; it may be stopped once `draining(...)["drained"]`."""
        return self.rest.post(f"{V1}/site/combiners/{quote(combiner, safe='')}/drain/")

    def resume(self, combiner: str) -> Json:
        """For operators: it takes clients again."""
        return self.rest.post(f"{V1}/site/combiners/{quote(combiner, safe='')}/resume/")

    # ---- sessions

    def sessions(self, slug: str, **filters: Any) -> Iterator[Json]:
        """The project's sessions."""
        return self.rest.pages(_of(slug, "sessions"), filters)

    def session(self, slug: str, session_id: str) -> Json:
        """One session."""
        return self.rest.get(_of(slug, "sessions", session_id))

    def create_session(self, slug: str, seed_model: str, **settings: Any) -> Json:
        """A new session, started at once unless start=False. Settings by name, groups as dictionaries: name, package,
        rounds, min_clients, requested_clients, aggregator, aggregator_kwargs, client_settings,
        selection={"strategy": "guided"}, asynchronous={"buffer_size": 10}, privacy={"noise_multiplier": 1.1} and all
        others of docs/sessions.md."""
        return self.rest.post(_of(slug, "sessions"), {"seed_model": seed_model, **settings}, creates=True)

    def start_session(self, slug: str, session_id: str) -> Json:
        """Start a session that was created with start=False."""
        return self.rest.post(_of(slug, "sessions", session_id, "start"))

    def stop_session(self, slug: str, session_id: str) -> Json:
        """Stop a running session; its clients are told to stop working."""
        return self.rest.post(_of(slug, "sessions", session_id, "stop"))

    def continue_session(self, slug: str, session_id: str, rounds: int) -> Json:
        """Run more rounds from the session's current model."""
        return self.rest.post(_of(slug, "sessions", session_id, "continue"), {"rounds": rounds})

    def rounds(self, slug: str, session_id: str) -> Iterator[Json]:
        """The rounds of a session, with their timings, assignments and metrics."""
        return self.rest.pages(_of(slug, "sessions", session_id, "rounds"))

    def assignments(self, slug: str, session_id: str, **filters: Any) -> Iterator[Json]:
        """Who was asked for what, and how it ended."""
        return self.rest.pages(_of(slug, "sessions", session_id, "assignments"), filters)

    # ---- what happened

    def events(self, slug: str, **filters: Any) -> Iterator[Json]:
        """Events; filters: after, level, kind, session, client, order (oldest or newest)."""
        return self.rest.pages(_of(slug, "events"), filters)

    def telemetry(self, slug: str, **filters: Any) -> Iterator[Json]:
        """Telemetry series by `client` and `name`."""
        return self.rest.pages(_of(slug, "telemetry"), filters)


def _of(slug: str, *parts: str) -> str:
    return "/".join([f"{V1}/projects", slug, *parts, ""])
