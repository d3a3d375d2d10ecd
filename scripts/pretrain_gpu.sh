#!/usr/bin/env bash
# Every model of Emojiland in nine minutes on one H100 with 16 cores, the drawing of the scenes included:
#
#   bash scripts/pretrain_gpu.sh [OUT]                       # OUT is outputs/world by default
#   cat OUT/world.tar.* | tar -x -C perfusion/assets         # puts the models in their place
#
# OUT gets world.tar.00, .01, ... (parts below 16 MiB), curves.tgz (training curves, results/emojiland.json and the sheet of
# drawn pictures) and log.txt. They are written anew after every stage, and every minute of the UNet's, so that a run that is
# cut leaves what it had; started again in the same folder, it goes on with the stages that are not finished.
#
# Variables: TOTAL=540 seconds for all; WORK=outputs/pretrain_gpu for scenes and checkpoints; SCENES=200000; PYTHON=python3;
# VAE, TEXT, UNET, SCORER, SEGMENTER, READER: overrides of each stage; EVERY: overrides of all.
# SCALE=0.002 SCENES=200 EVERY="batch=4 warmup=1" tries the script on a CPU: every stage has that share of its time.
set -uo pipefail

OUT=$(realpath -m "${1:-outputs/world}")
WORK=$(realpath -m "${WORK:-outputs/pretrain_gpu}")
PYTHON=${PYTHON:-python3} SCALE=${SCALE:-1} TOTAL=${TOTAL:-540} SCENES=${SCENES:-200000}
LOOKS=$((SCENES / 2)) # scenes of the UNet, other drawings too
FEWER=$((SCENES * 3 / 10)) # scenes of the judges, on which held-out drawings are too
VAE=${VAE:-"batch=256 lr=2e-3"}
TEXT=${TEXT:-"batch=768"}
UNET=${UNET:-"batch=768 lr=1.5e-3 cooldown=.6 ema=.998"}
SCORER=${SCORER:-"batch=512 lr=2e-3"}
SEGMENTER=${SEGMENTER:-"batch=256 lr=2e-3"}
READER=${READER:-"batch=512 lr=2e-3"}
EVERY=${EVERY:-}
AFTER=170 # seconds that the UNet leaves for what comes after it

mkdir -p "$OUT" "$WORK/assets/emojiland" "$WORK/results" "$WORK/done" "$WORK/logs" "$WORK/cache"
export PERFUSION_ASSETS=$WORK/assets PERFUSION_CACHE=$WORK/cache PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
SECONDS=0

say() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$OUT/log.txt"; }
scaled() { awk -v s="$1" -v scale="$SCALE" 'BEGIN { printf "%.4f", s * scale / 60 }'; } # seconds of SCALE=1 as minutes

pack() { # what there is by now, each file whole or not at all
  local part
  part=$(mktemp -d "$WORK/pack.XXXX")
  tar -c -C "$PERFUSION_ASSETS" emojiland 2>>"$WORK/pack.log" | split -b 15m -d - "$part/world.tar."
  (cd "$WORK" && tar -czf "$part/curves.tgz" results logs $(find cache -name metrics.csv)) 2>>"$WORK/pack.log"
  mv "$part"/* "$OUT/" && rmdir "$part"
}

told() { # the last line of a log, and how far a training came
  tr '\r' '\n' <"$WORK/logs/$1.log" | awk '/: step [0-9]+ of/ { sub(/, checkpoint.*/, ""); step = $0 "; " } NF { last = $0 } END { print step last }'
}

stage() { # stage NAME SECONDS COMMAND...: in $WORK/logs/NAME.log; one line at its end; not again once it is done
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  [ -e "$WORK/done/$name" ] && { say "$name: done before"; return 0; }
  if timeout --signal=INT --kill-after=20 "$limit" "$@" >"$WORK/logs/$name.log" 2>&1; then
    touch "$WORK/done/$name"
    say "$name: $((SECONDS - began)) s; $(told "$name")"
  else
    say "$name: FAILED after $((SECONDS - began)) s; $(told "$name")"
    return 1
  fi
}

train() { # train NAME SCRIPT SECONDS OVERRIDES...: so long at SCALE=1, the schedule fitted to it
  local name=$1 script=$2 minutes
  minutes=$(scaled "$3")
  shift 3
  stage "$name" "$((TOTAL + 600))" "$PYTHON" "scripts/pretrain_$script.py" "minutes=$minutes" timed=true steps=1000000 \
    checkpoint_minutes=1 "$@" $EVERY
}

finish() { pack; say "all: $(ls "$OUT" | tr '\n' ' ')"; }
trap finish EXIT
trap 'exit 1' INT TERM

"$PYTHON" -c 'import torch; print("device:", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", torch.__version__)' |
  while read -r line; do say "$line"; done &
scenes() { "$PYTHON" -c "from perfusion.emojiland.cache import SceneCache; print(len(SceneCache($1, $2, held_out=$3, mutants=$4, strangers=${5:-0})), 'scenes')"; }
export -f scenes
export PYTHON
stage scenes 300 bash -c "scenes $SCENES 1 False 0.6" || exit 1

stage scenes_looks 300 bash -c "scenes $LOOKS 1 False 0.6 0.4" &
LOOKED=$!
stage scenes_all 300 bash -c "scenes $FEWER 2 True 0" &
ALL=$!
train vae vae 50 scenes="$SCENES" $VAE &
FIRST=$!
train text text 40 scenes="$SCENES" $TEXT || exit 1
wait $FIRST || exit 1
wait $LOOKED || exit 1
pack

LEFT=$((TOTAL - SECONDS - AFTER - 25)) # 25: to start, and to encode the scenes
[ "$LEFT" -lt 30 ] && LEFT=30
(while sleep 60; do pack; done) >/dev/null 2>&1 &
PACKING=$!
train unet unet "$LEFT" scenes="$LOOKS" snapshots=true $UNET
kill $PACKING 2>/dev/null
wait $PACKING 2>/dev/null
pack

wait $ALL
train scorer judge 50 scenes="$FEWER" $SCORER &
train reader reader 50 scenes="$FEWER" $READER &
train segmenter segmenter 60 scenes="$SCENES" $SEGMENTER &
wait
pack

LEFT=$((TOTAL - SECONDS - 10))
if [ "$LEFT" -ge 40 ]; then
  stage measure "$LEFT" "$PYTHON" -m perfusion measure prompts=100 "results=$WORK/results/emojiland.json" "sheet=$WORK/results/samples.png"
else
  say "measure: no time left; perfusion measure does it anywhere"
fi
