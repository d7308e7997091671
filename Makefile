# Each target sets itself up in .venv; all it needs is Python 3.11 or newer with pip and venv.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
SUITE  ?=
RUN_ID ?=
DEBUG  ?= False
ARGS   ?=

OPTIONS = $(if $(RUN_ID),--name $(RUN_ID)) $(if $(filter True true 1,$(DEBUG)),--debug) $(ARGS)

.PHONY: install quickstart test test-slurm test-browser test-latex celeba ffhq lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# The libraries that other repositories measure with, which our metrics are tested against.
$(VENV)/parity: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[parity]'
	touch $@

quickstart: install
	$(BIN)/bench run suites/quickstart.yaml $(OPTIONS)

test: $(VENV)/parity
	$(BIN)/pytest $(ARGS)

# On a SLURM cluster of our own that lives as long as the tests. `python3 tests/slurm_cluster.py missing` says what it lacks.
test-slurm: install
	$(BIN)/python tests/slurm_cluster.py run -- $(BIN)/pytest tests/slurm $(ARGS)

# The HTML pages in a headless Chromium (Debian's package chromium, or the one that BENCH_CHROMIUM names).
test-browser: install
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[browser]'
	BENCH_REQUIRE_BROWSER=1 $(BIN)/pytest tests/browser $(ARGS)

# The tables of the reports through pdflatex (Debian's texlive-latex-recommended texlive-latex-extra) or tectonic.
test-latex: install
	BENCH_REQUIRE_LATEX=1 $(BIN)/pytest tests/latex $(ARGS)

# RUN_ID=my-name keeps results under another name; DEBUG=True runs ten batches; DATA=folder holds celeba/ and ffhq/.
celeba: install
	$(BIN)/bench run $(or $(SUITE),suites/celeba_codebook_size.yaml) $(if $(DATA),--data $(DATA)) $(OPTIONS)

ffhq: install
	$(BIN)/bench run $(or $(SUITE),suites/ffhq_codebook_size.yaml) $(if $(DATA),--data $(DATA)) $(OPTIONS)

lint: install
	$(BIN)/pip install --quiet --disable-pip-version-check ruff
	$(BIN)/ruff check bench implementations tests

clean:
	rm -rf $(VENV)
