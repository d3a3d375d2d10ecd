# make test: everything from a clean checkout; make demo: learn a teddy; make tour: the notebook; make ablations, make figures: the
# paper's (many hours); make emojiland: retrain the small world's models (hours).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: test demo ablations figures tour emojiland campaign clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "perfusion needs Python 3.11 or newer, this is " + sys.version'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

test: $(VENV)/.installed
	$(PY) -m pytest -q -n 2 --dist loadfile

# Five pictures of one teddy in, a concept file and a picture of it in new prompts out.
demo: $(VENV)/.installed
	$(VENV)/bin/perfusion train concept=teddy concept_file=teddy.safetensors

# The ablations' sweeps, joined: half an hour an arm on two cores; stopped, they go on where they were.
ABLATIONS := one_shot key_locking zero_shot_mask sigmoid_bias sigmoid_temperature lock_type \
  masked_prior i_star_gradient covariance_tokens shrinkage
CONCEPTS := cat,clock,dog,fish,guitar,house,mushroom,robot,teapot,teddy
ablations: $(VENV)/.installed
	for e in $(ABLATIONS); do \
	  $(VENV)/bin/perfusion train -m +experiment=$$e concept=$(CONCEPTS) seed=0,1,2 evaluation.split=final && \
	  $(VENV)/bin/perfusion collect experiment=$$e || exit 1; done

# The paper's figures.
figures: ablations
	for f in 7 teaser attention locks; do $(PY) scripts/figure_$$f.py --from-scratch || exit 1; done
	$(PY) scripts/figure_9.py

# Run the notebook, and keep what it shows.
tour: $(VENV)/.installed
	$(VENV)/bin/jupyter-execute --inplace notebooks/tour.ipynb

# Drawing the scenes once, then each model; every step shows its progress and goes on where it was stopped. The UNet's second
# and third sittings start from the one before, and look at objects more than at places.
PERFUSION_ASSETS ?= perfusion/assets
SHARPER := start=$(PERFUSION_ASSETS)/emojiland/pipeline/unet lr=5e-4 cooldown=.6 background=.35 ema=.998
emojiland: $(VENV)/.installed
	@echo "Two cores need about 4 minutes for the scenes, 30 for the VAE, 10 for the text encoder, 2-6 hours for the UNet,"
	@echo "1-2 hours for the segmenter, 15 minutes for the scorer, 25 for the reader. Stop at any time; make emojiland goes on."
	$(PY) scripts/pretrain_vae.py
	$(PY) scripts/pretrain_text.py
	$(PY) scripts/pretrain_unet.py
	$(PY) scripts/pretrain_unet.py $(SHARPER) name=unet_2 steps=2200
	$(PY) scripts/pretrain_unet.py $(SHARPER) name=unet_3 steps=2500 twos=2 seed=1
	$(PY) scripts/pretrain_segmenter.py
	$(PY) scripts/pretrain_judge.py
	$(PY) scripts/pretrain_reader.py

# Kills, damaged files, bad inputs, full disks (docs/reliability.md): hours on two cores; the figures are in results/reliability.json.
campaign: $(VENV)/.installed
	for c in kills resumes fuzz inputs soak places; do $(PY) scripts/campaign/$$c.py || exit 1; done

clean:
	rm -rf $(VENV) outputs multirun
