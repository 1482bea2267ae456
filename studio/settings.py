"""Settings. Only three addresses differ between the embedded default and production:
`DATABASE_URL`, `REDIS_URL` and `STORAGE_URL`. `STUDIO_DATA` names the data directory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import environ

from studio.version import VERSION as STUDIO_VERSION  # noqa: F401  (a setting)

env = environ.Env()
BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(env("STUDIO_DATA", default=str(BASE_DIR / "data"))).expanduser().resolve()


def _secret(name: str) -> str:
    """The value of `STUDIO_<NAME>` or of the file that `STUDIO_<NAME>_FILE` names, else one made once and kept
    in the data directory, readable by its owner only."""
    variable = f"STUDIO_{name.upper()}"
    if value := os.environ.get(variable):
        return value
    if file := os.environ.get(f"{variable}_FILE"):
        return Path(file).read_text().strip()
    path = DATA_DIR / "secrets" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{name}.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)  # the first of several processes wins
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()


SECRET_KEY = _secret("secret_key")
# Token digests name the pepper they were made with; add a number to rotate, remove one to revoke all of it.
TOKEN_PEPPERS: dict[int, str] = {1: _secret("token_pepper_1")}
if env("STUDIO_TOKEN_PEPPER_2", default="") or (DATA_DIR / "secrets" / "token_pepper_2").exists():
    TOKEN_PEPPERS[2] = _secret("token_pepper_2")

DEBUG = env.bool("STUDIO_DEBUG", default=False)
PUBLIC_URL = env(
    "STUDIO_PUBLIC_URL", default=""
)  # https://studio.example.org, for links in mails and configs
_public = urlsplit(PUBLIC_URL)
ALLOWED_HOSTS = env.list(
    "STUDIO_ALLOWED_HOSTS",
    default=["localhost", "127.0.0.1", "[::1]", *([_public.hostname] if _public.hostname else [])],
)
CSRF_TRUSTED_ORIGINS = [f"{_public.scheme}://{_public.netloc}"] if PUBLIC_URL else []
SECURE = env.bool("STUDIO_TLS", default=_public.scheme == "https")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE
SESSION_COOKIE_HTTPONLY = True
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
PROXIES = env.int(
    "STUDIO_PROXIES", default=int(env.bool("STUDIO_BEHIND_PROXY", default=False))
)  # whose word to take
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if PROXIES else None
X_FRAME_OPTIONS = "DENY"

INSTALLED_APPS = [
    "studio.apps.StudioAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "channels",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_htmx",
    "csp",
    "foundation",
    "projects",
    "projects.tokens",
    "clients_app",
    "federation.events",
    "federation.models",
    "federation.sessions",
    "studio.apps.StudioConfig",
]

MIDDLEWARE = [
    "federation.dialects.controller.slashes.SingleSlashes",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "studio.middleware.ActorMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "studio.middleware.StudioErrorMiddleware",
]

ROOT_URLCONF = "studio.urls"
ASGI_APPLICATION = "studio.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]


def _database() -> dict[str, Any]:
    url = env("DATABASE_URL", default="") or f"sqlite:///{DATA_DIR / 'studio.sqlite3'}"
    config: dict[str, Any] = environ.Env.db_url_config(url)
    if config["ENGINE"].endswith("sqlite3"):
        Path(config["NAME"]).parent.mkdir(parents=True, exist_ok=True)
        config["OPTIONS"] = {
            # A writer waits for the lock from its first statement, so that nobody ever meets "database is locked".
            "transaction_mode": "IMMEDIATE",
            "timeout": 30,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
        }
        config["TEST"] = {"NAME": str(DATA_DIR / "test.sqlite3")}
    else:
        config["CONN_MAX_AGE"] = 0
        config["OPTIONS"] = {
            "pool": {"min_size": 0, "max_size": env.int("STUDIO_DB_POOL", default=20), "timeout": 15}
        }
    return config


DATABASES = {"default": _database()}
AUTH_USER_MODEL = "projects.User"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Redis: hints only --------------------------------------------------------------------------------------
_UP_REDIS = DATA_DIR / "run" / "redis_url"  # `up` says here where its private Redis is, as long as it runs
REDIS_URL = env("REDIS_URL", default="") or (
    _UP_REDIS.read_text().strip() if _UP_REDIS.exists() else "redis://127.0.0.1:6379/0"
)
CACHES = {
    "default": {
        "BACKEND": "foundation.cache.TolerantRedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "studio",
        "OPTIONS": {"socket_connect_timeout": 0.2, "socket_timeout": 0.5},
    }
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [{"address": REDIS_URL}], "prefix": "studio-live"},
    }
}
CELERY_BROKER_URL = REDIS_URL
CELERY_RESULT_BACKEND = None
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_ACKS_LATE = True  # every task is safe to run twice
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ROUTES = {
    "federation.sessions.tasks.reduce_round": {"queue": "reduce"},
    "federation.sessions.tasks.help_reduce": {"queue": "reduce"},
}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 4 * 3600,
    "socket_timeout": 5,
    "socket_connect_timeout": 1,
    "global_keyprefix": "studio-celery-",
}
CELERY_TASK_PUBLISH_RETRY = False
CELERY_BEAT_SCHEDULE = {
    "tick": {"task": "federation.sessions.tasks.tick", "schedule": 1.0, "options": {"expires": 3}},
    "commands": {
        "task": "federation.sessions.tasks.time_out_commands",
        "schedule": 10.0,
        "options": {"expires": 10},
    },
    "silent_combiners": {
        "task": "clients_app.tasks.note_silent_combiners",
        "schedule": 5.0,
        "options": {"expires": 5},
    },
    "sweep": {"task": "federation.sessions.tasks.sweep", "schedule": 600.0, "options": {"expires": 300}},
    "forget": {
        "task": "foundation.tasks.forget_old_answers",
        "schedule": 3600.0,
        "options": {"expires": 600},
    },
}

# --- Storage ------------------------------------------------------------------------------------------------
# `file:///path`, or `s3://KEY:SECRET@host:port/bucket?tls=0&region=…`; without a key, boto3 finds its own
STORAGE_URL = env("STORAGE_URL", default="") or f"file://{DATA_DIR / 'artifacts'}"


def _storage(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and len(parts.path) > 1:
        return {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": unquote(parts.path), "file_permissions_mode": 0o600},
        }
    bucket = parts.path.strip("/")
    if parts.scheme != "s3" or not bucket or "/" in bucket:
        raise environ.ImproperlyConfigured(
            "STORAGE_URL must be file:///a/folder or s3://KEY:SECRET@host:port/bucket."
        )
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    host = parts.hostname or "s3.amazonaws.com"
    port = f":{parts.port}" if parts.port else ""
    return {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "access_key": unquote(parts.username or "") or None,
            "secret_key": unquote(parts.password or "") or None,
            "bucket_name": bucket,
            "endpoint_url": f"{'http' if query.get('tls') == '0' else 'https'}://{host}{port}",
            "region_name": query.get("region", "us-east-1"),
            "addressing_style": "path",
            "signature_version": "s3v4",
            "file_overwrite": True,
            "querystring_auth": True,
            "max_memory_size": 1 << 20,
        },
    }


STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "artifacts": _storage(STORAGE_URL),
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# where clients reach the bucket of STORAGE_URL, to fetch models from it by signed URL; empty: from combiners
DIRECT_DOWNLOADS = env("STUDIO_DIRECT_DOWNLOADS", default="")
_direct = urlsplit(DIRECT_DOWNLOADS)
if DIRECT_DOWNLOADS and (
    _direct.scheme not in ("http", "https") or not _direct.hostname or "@" in _direct.netloc or _direct.query
):
    raise environ.ImproperlyConfigured("STUDIO_DIRECT_DOWNLOADS must be like https://s3.example.org.")
FILE_UPLOAD_TEMP_DIR = str(DATA_DIR / "uploads") if (DATA_DIR / "uploads").is_dir() else None
MAX_PACKAGE_BYTES = env.int("STUDIO_MAX_PACKAGE_BYTES", default=200 * 2**20)
MAX_MODEL_BYTES = env.int("STUDIO_MAX_MODEL_BYTES", default=4 * 2**30)
# rounds of one project that workers are asked to reduce at a time
REDUCTIONS_PER_PROJECT = env.int("STUDIO_REDUCTIONS_PER_PROJECT", default=4)
# and that one worker process is at: fewer than it has threads
REDUCTIONS_PER_WORKER = env.int("STUDIO_REDUCTIONS_PER_WORKER", default=6)
# beyond so many bytes of updates a reduction that reads them all is spread over workers
REDUCTION_SPREAD_BYTES = env.int("STUDIO_REDUCTION_SPREAD_BYTES", default=2 * 2**30)
DATA_UPLOAD_MAX_MEMORY_SIZE = 5 * 2**20

# --- Accounts -----------------------------------------------------------------------------------------------
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
SIGNUP_OPEN = env("STUDIO_SIGNUP", default="open") == "open"
LOGIN_TOKEN_DAYS = env.int("STUDIO_LOGIN_TOKEN_DAYS", default=90)
ALLAUTH_TRUSTED_PROXY_COUNT = PROXIES
ACCOUNT_ADAPTER = "projects.accounts.AccountAdapter"
ACCOUNT_USERNAME_VALIDATORS = "projects.accounts.USERNAME_VALIDATORS"
ACCOUNT_EMAIL_SUBJECT_PREFIX = "Studio: "
ACCOUNT_EMAIL_UNKNOWN_ACCOUNTS = False  # no mail to somebody who never came here
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = env("STUDIO_EMAIL_VERIFICATION", default="optional")
ACCOUNT_UNIQUE_EMAIL = True
ACCOUNT_PREVENT_ENUMERATION = True
ACCOUNT_RATE_LIMITS = {"login_failed": "10/m/ip,5/5m/key", "signup": "20/m/ip"}
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "projects"
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
EMAIL_BACKEND = env("STUDIO_EMAIL_BACKEND", default="django.core.mail.backends.console.EmailBackend")
DEFAULT_FROM_EMAIL = env("STUDIO_FROM_EMAIL", default="studio@localhost")

# --- REST ---------------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "projects.tokens.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["projects.permissions.ActsForPeople"],
    "DEFAULT_PARSER_CLASSES": [
        "foundation.parsing.BoundedJSONParser",
        "rest_framework.parsers.MultiPartParser",
    ],
    "URL_FORMAT_OVERRIDE": None,  # ?format= is a model's file format
    "NUM_PROXIES": PROXIES,
    "DEFAULT_RENDERER_CLASSES": [
        "rest_framework.renderers.JSONRenderer",
        "rest_framework.renderers.BrowsableAPIRenderer",
    ],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_PAGINATION_CLASS": "foundation.paging.KeysetPagination",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "EXCEPTION_HANDLER": "foundation.problems.problem_response",
    "PAGE_SIZE": 50,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Studio",
    "DESCRIPTION": "Federated learning: projects, packages, models, clients, sessions, events.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "COMPONENT_SPLIT_REQUEST": True,
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "foundation.schema.say_what_holds_everywhere",
    ],
    "ENUM_NAME_OVERRIDES": {
        "RoleEnum": "projects.choices.Role",
        "TokenKindEnum": "projects.tokens.choices.TokenKind",
        "MadeTokenKindEnum": "projects.tokens.choices.MADE_BY_PEOPLE",
        "ModelKindEnum": "federation.models.choices.ModelKind",
        "AssignmentKindEnum": "federation.sessions.choices.AssignmentKind",
        "ScopeEnum": "projects.tokens.choices.Scope",
    },
}

# --- Pages --------------------------------------------------------------------------------------------------
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATIC_ROOT = DATA_DIR / "static"
WHITENOISE_USE_FINDERS = True
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "object-src": ["'none'"],
        "base-uri": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    },
}

# Logging is set up by studio.logs, in every process alike.
LOGGING = {"version": 1}
LOGGING_CONFIG = "studio.logs.configure"
SILENCED_SYSTEM_CHECKS: list[str] = []
