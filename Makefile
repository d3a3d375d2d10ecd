# make demo: learn a teddy; make check: lint, types and the fast tests; make test: everything from a clean checkout; make coverage: the
# same, and which lines it runs; make wheel: built, and run elsewhere; make docs: the site; make tables: the tables of README and docs,
# out of the result files; make tour: the notebook;
# make ablations, make figures: the paper's (many hours); make emojiland: retrain the small world's models (hours).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := -qq --disable-pip-version-check # errors alone

.PHONY: check lint test coverage wheel docs tables demo ablations figures tour emojiland campaign clean

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "perfusion needs Python 3.11 or newer, this is " + sys.version'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing what perfusion needs into $(VENV): a few minutes, once"
	@$(PY) -m pip install $(PIP) -c constraints.txt -e '.[test]'
	@touch $@

# Lint and documents need little: an environment of their own, without torch.
LINT := $(VENV)/lint
$(LINT)/.installed: .ci/tools.txt
	@test -x $(LINT)/bin/python || $(PYTHON) -m venv $(LINT)
	@$(LINT)/bin/python -m pip install $(PIP) -r .ci/tools.txt
	@touch $@

lint: $(LINT)/.installed
	$(LINT)/bin/ruff check
	$(LINT)/bin/ruff format --check
	$(LINT)/bin/mypy

check: lint $(VENV)/.installed
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not slow"

test: $(VENV)/.installed
	$(PY) -m pytest -q -n 2 --dist loadfile

# A few times as long as make test: the pages of htmlcov/ show every line that no test runs, commands of their own process included.
coverage: $(VENV)/.installed
	$(PY) -m pytest -q -n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-report=html

wheel: $(VENV)/.installed
	PYTHON=$(PY) scripts/check_wheel.sh

docs: $(LINT)/.installed
	NO_MKDOCS_2_WARNING=1 $(LINT)/bin/mkdocs build --strict # not --quiet, which warnings do not count under
	@echo "the site: site/index.html"

tables: $(VENV)/.installed
	$(PY) scripts/tables.py

# Five pictures of one teddy in, a concept file and a picture of it in new prompts out.
demo: $(VENV)/.installed
	$(VENV)/bin/perfusion train concept=teddy concept_file=teddy.safetensors

# The experiments' sweeps, joined: 1 to 34 minutes an arm on two cores, half a day in all; stopped, they go on where they were.
ablations: $(VENV)/.installed
	$(PY) scripts/run_experiments.py

# The paper's figures.
figures: ablations
	for f in 7 teaser attention locks; do $(PY) scripts/figure_$$f.py --from-scratch || exit 1; done
	$(PY) scripts/figure_9.py

# Run the notebook, and keep what it shows.
tour: $(VENV)/.installed
	$(VENV)/bin/jupyter-execute --inplace notebooks/tour.ipynb

# Drawing the scenes once, then each model; every step shows its progress and goes on where it was stopped.
emojiland: $(VENV)/.installed
	@echo "Two cores need about 4 minutes for the scenes, 30 for the VAE, 5 for the text encoder, 6-12 hours for the UNet,"
	@echo "an hour for the segmenter, 10 minutes each for the scorer and the reader. Stop at any time; make emojiland goes on."
	$(PY) scripts/pretrain_vae.py
	$(PY) scripts/pretrain_text.py
	$(PY) scripts/pretrain_unet.py
	$(PY) scripts/pretrain_segmenter.py
	$(PY) scripts/pretrain_judge.py
	$(PY) scripts/pretrain_reader.py

# Kills, damaged files, bad inputs, full disks (docs/reliability.md): hours on two cores; the figures are in results/reliability.json.
campaign: $(VENV)/.installed
	for c in kills resumes fuzz inputs soak places; do $(PY) scripts/campaign/$$c.py || exit 1; done

clean:
	rm -rf $(VENV) outputs multirun site htmlcov .coverage*
