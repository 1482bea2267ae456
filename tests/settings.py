"""Settings of the tests: the real ones, on servers and folders of this run's own."""

from tests.services.environment import prepare

prepare()

from studio.settings import *  # noqa: E402, F403
from studio.settings import DATABASES, PASSWORD_HASHERS  # noqa: E402

# argon2 is slow on purpose; the suite makes thousands of users
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher", *PASSWORD_HASHERS]

# the test database is the one DATABASE_URL names, a real file under SQLite: threads and child processes see it
DATABASES["default"].setdefault("TEST", {})["NAME"] = DATABASES["default"]["NAME"]
