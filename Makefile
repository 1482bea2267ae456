# The commands of the house. GNU make 3.81 and any POSIX sh are enough.
#
#   make setup          the virtual environment in .venv, with everything installed
#   make demo           from nothing to a trained model, with three clients
#   make up             Studio on this machine; ARGS="--port 8000 --data ./data"
#   make test           lint, types, migrations, API schema and all tests, on SQLite and on Postgres
#   make lint           only the quick checks
#   make requirements   compile requirements*.in into fully pinned requirements*.txt

PY = .venv/bin/python

.PHONY: help setup setup-dev demo up test lint requirements clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@sh deploy/setup.sh

setup-dev:
	@sh deploy/setup.sh --dev

demo: setup
	@exec $(PY) -m examples.digits.demo $(ARGS)

up: setup
	@exec $(PY) manage.py up $(ARGS)

test: setup-dev
	@exec $(PY) -m tests.suite $(ARGS)

lint: setup-dev
	@exec $(PY) -m tests.suite --only lint $(ARGS)

requirements:
	@sh deploy/setup.sh --requirements
