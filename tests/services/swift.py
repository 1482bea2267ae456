"""An S3 server that checks signatures: OpenStack Swift with its s3api, from PyPI, in a cached environment of its own.

Four small processes on loopback, data in the run's folder. Started once per test run, by whichever worker asks first.
Swift needs Linux and a file system with user xattrs.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.services.environment import free_port, run_dir

VERSION = "2.38.3"
ACCOUNT, USER, SECRET = "studio", "tester", "testing-secret"
READY_WITHIN_S = 40.0


class Unavailable(RuntimeError):
    """No S3 server to test with; the message says why."""


@dataclass(frozen=True)
class S3Server:
    """Where it is and how to log in. `url(bucket)` is a STORAGE_URL."""

    endpoint: str
    key: str
    secret: str
    region: str = "us-east-1"

    def url(self, bucket: str) -> str:
        """The address that Studio's settings take."""
        from urllib.parse import quote, urlsplit

        where = urlsplit(self.endpoint)
        tls = "" if where.scheme == "https" else "&tls=0"
        login = f"{quote(self.key, safe='')}:{quote(self.secret, safe='')}"
        return f"s3://{login}@{where.netloc}/{bucket}?region={self.region}{tls}"


def pointed_to() -> S3Server | None:
    """The server named by TEST_S3_ENDPOINT, TEST_S3_KEY and TEST_S3_SECRET."""
    endpoint = os.environ.get("TEST_S3_ENDPOINT")
    if not endpoint:
        return None
    return S3Server(endpoint, os.environ.get("TEST_S3_KEY", ""), os.environ.get("TEST_S3_SECRET", ""),
                    os.environ.get("TEST_S3_REGION", "us-east-1"))  # fmt: skip


def shared() -> S3Server:
    """The one server of this test run; started by the first who asks.

    Raises:
        Unavailable: it cannot be installed or started here.
    """
    given = pointed_to()
    if given:
        return given
    home = run_dir() / "swift"
    home.mkdir(exist_ok=True)
    note = home / "server.json"
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            note.write_text(json.dumps(asdict(_start(home))))
    return S3Server(**json.loads(note.read_text()))


def stop_shared() -> None:
    """End the server of this run, if one was started."""
    home = run_dir() / "swift"
    pids = home / "pids"
    if not pids.exists():
        return
    for pid in pids.read_text().split():
        try:
            os.killpg(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    pids.unlink()
    (home / "server.json").unlink(missing_ok=True)


def _environment() -> Path:
    """The folder of Swift's own virtual environment; built once and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "studio-tests"
    release = f"{sys.version_info[0]}.{sys.version_info[1]}"
    home = cache / f"swift-{VERSION}-py{release}"
    done = home / "installed"
    if done.exists() and (home / "bin" / "python").exists():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "swift.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return home
        shutil.rmtree(home, ignore_errors=True)
        log = cache / "swift-pip.log"
        with log.open("wb") as out:
            for command in (
                [sys.executable, "-m", "venv", str(home)],
                [str(home / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check",
                 f"swift=={VERSION}"],
            ):  # fmt: skip
                code = subprocess.run(command, stdout=out, stderr=out, check=False).returncode
                if code:
                    raise Unavailable(f"Swift {VERSION} could not be installed for the S3 tests; see {log}")
        done.touch()
    return home


def _folder_with_xattrs(home: Path) -> Path:
    for parent in (home, Path("/var/tmp"), Path.home() / ".cache"):
        try:
            folder = Path(tempfile.mkdtemp(prefix="swift-", dir=parent))
            os.setxattr(folder, "user.studio", b"1")
            return folder
        except (OSError, AttributeError):
            continue
    raise Unavailable("Swift needs a file system with user xattrs (Linux); none was found for the S3 tests.")


def _start(home: Path) -> S3Server:
    python = _environment() / "bin" / "python"
    root = _folder_with_xattrs(home)
    ports = {name: free_port() for name in ("proxy", "account", "container", "object")}
    _write_configuration(home, root, ports)
    builder = str(python.parent / "swift-ring-builder")
    for name in ("account", "container", "object"):
        for arguments in (
            ["create", "4", "1", "0"],
            ["add", f"r1z1-127.0.0.1:{ports[name]}/disk", "1"],
            ["rebalance"],
        ):
            done = subprocess.run([str(python), builder, f"{name}.builder", *arguments],
                                  cwd=home, capture_output=True, text=True, check=False)  # fmt: skip
            if done.returncode > 1:  # 1 is a warning
                raise Unavailable(f"Swift's rings could not be built: {done.stdout.strip()}")
    pids = []
    for name in ports:
        with (home / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [str(python), str(python.parent / f"swift-{name}-server"), str(home / f"{name}-server.conf"), "-v"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=home, start_new_session=True,
            )  # fmt: skip
        child.returncode = 0  # it outlives this process on purpose; `stop_shared` ends it by its number
        pids.append(str(child.pid))
        (home / "pids").write_text(" ".join(pids))
    _end_with_the_run(pids)
    endpoint = f"http://127.0.0.1:{ports['proxy']}"
    deadline = time.monotonic() + READY_WITHIN_S
    while not _answers(endpoint):
        if time.monotonic() > deadline:
            raise Unavailable(f"Swift did not start within {READY_WITHIN_S:g} s; its logs are in {home}")
        time.sleep(0.1)
    return S3Server(endpoint, f"{ACCOUNT}:{USER}", SECRET)


def _end_with_the_run(pids: list[str]) -> None:
    """The servers belong to all workers of the run: whoever started the run takes them along, even when killed."""
    watch = (
        "import os, signal, sys, time\n"
        "owner, *groups = map(int, sys.argv[1:])\n"
        "def there(pid):\n"
        "    try: os.kill(pid, 0)\n"
        "    except ProcessLookupError: return False\n"
        "    return True\n"
        "while there(owner) and there(groups[0]): time.sleep(1)\n"
        "for group in groups:\n"
        "    try: os.killpg(group, signal.SIGKILL)\n"
        "    except ProcessLookupError: pass\n"
    )
    owner = os.environ.get("STUDIO_TEST_OWNER", str(os.getpid()))
    watcher = subprocess.Popen([sys.executable, "-I", "-c", watch, owner, *pids], start_new_session=True, cwd="/",
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    watcher.returncode = 0  # it outlives this process on purpose


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/healthcheck", timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _write_configuration(home: Path, root: Path, ports: dict[str, int]) -> None:
    (root / "disk").mkdir()
    (home / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = studio\nswift_hash_path_prefix = tests\n"
        "[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    common = (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nworkers = 0\nswift_dir = {home}\ndevices = {root}\nmount_check = false\n"
        "fallocate_reserve = 0\ndisable_fallocate = true\nlog_level = WARNING\n"
        f"user = {_user()}\n"
    )
    (home / "proxy-server.conf").write_text(
        f"{common}bind_port = {ports['proxy']}\n"
        "[pipeline:main]\n"
        "pipeline = catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth copy slo dlo symlink "
        "versioned_writes proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n"
        "[filter:catch_errors]\nuse = egg:swift#catch_errors\n"
        "[filter:gatekeeper]\nuse = egg:swift#gatekeeper\n"
        "[filter:healthcheck]\nuse = egg:swift#healthcheck\n"
        # nobody listens there: Swift works without a memcached, it only has to be told of one
        "[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = 127.0.0.1:1\nconnect_timeout = 0.1\n"
        "error_suppression_limit = 1\nerror_suppression_interval = 100000\n"
        "[filter:listing_formats]\nuse = egg:swift#listing_formats\n"
        "[filter:s3api]\nuse = egg:swift#s3api\ns3_acl = false\nlocation = us-east-1\ncheck_bucket_owner = false\n"
        "dns_compliant_bucket_names = true\nallow_multipart_uploads = true\n"
        "[filter:tempauth]\nuse = egg:swift#tempauth\n"
        f"user_{ACCOUNT}_{USER} = {SECRET} .admin\n"
        "[filter:copy]\nuse = egg:swift#copy\n"
        "[filter:slo]\nuse = egg:swift#slo\n"
        "[filter:dlo]\nuse = egg:swift#dlo\n"
        "[filter:symlink]\nuse = egg:swift#symlink\n"
        "[filter:versioned_writes]\nuse = egg:swift#versioned_writes\nallow_object_versioning = true\n"
    )
    for name in ("account", "container", "object"):
        (home / f"{name}-server.conf").write_text(
            f"{common}bind_port = {ports[name]}\nrecon_cache_path = {home}\n"
            f"[pipeline:main]\npipeline = {name}-server\n[app:{name}-server]\nuse = egg:swift#{name}\n"
        )


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
