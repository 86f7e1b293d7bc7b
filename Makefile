# The six commands of a contributor.
.PHONY: install test slow check docs ci

install: ## kdkit from this folder, with what tests, lint and pages need
	pip install -e ".[dev]"

test: ## the default tests, in two processes
	python -m pytest -n 2 -m "not slow"

slow: ## the others
	python -m pytest -n 2 --dist loadgroup -m slow

check: ## lint, format and types
	ruff check . && ruff format --check . && mypy

docs: ## the pages, into docs/_build
	python -m sphinx -W -q -b html docs docs/_build

ci: ## all of it in a fresh environment, as CI does
	.ci/run
