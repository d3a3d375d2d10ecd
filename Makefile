# make test: everything from a clean checkout; make demo: learn a teddy; make emojiland: retrain the small world's models (hours).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: test demo emojiland clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "perfusion needs Python 3.11 or newer, this is " + sys.version'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

test: $(VENV)/.installed
	$(PY) -m pytest -q

# Five pictures of one teddy in, a concept file and a picture of it in new prompts out.
demo: $(VENV)/.installed
	$(VENV)/bin/perfusion train concept=teddy concept_file=teddy.safetensors

# Drawing the scenes once, then each model; every step shows its progress and goes on where it was stopped.
emojiland: $(VENV)/.installed
	@echo "Two cores need about 4 minutes for the scenes, 30 for the VAE, 10 for the text encoder, 4-8 hours for the UNet,"
	@echo "1 hour for the segmenter, 15 minutes for the scorer, 25 for the reader. Stop at any time; make emojiland goes on."
	$(PY) scripts/pretrain_vae.py
	$(PY) scripts/pretrain_text.py
	$(PY) scripts/pretrain_unet.py
	$(PY) scripts/pretrain_segmenter.py
	$(PY) scripts/pretrain_judge.py
	$(PY) scripts/pretrain_reader.py

clean:
	rm -rf $(VENV) outputs multirun
