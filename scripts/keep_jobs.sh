#!/bin/bash
# Keep what an experiment's jobs measured, every picture's scores, as results/jobs/NAME.tar.xz (2 KB a job).
#
#     scripts/keep_jobs.sh NAME...                # out of multirun/NAME
#     tar xf results/jobs/NAME.tar.xz             # back into multirun/NAME: a sweep goes on from there, collect joins them
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p results/jobs
for name; do
    ls multirun/"$name"/*/result.json > /dev/null
    tar --create --xz --file "results/jobs/.$name.part" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner \
        multirun/"$name"/*/result.json
    mv "results/jobs/.$name.part" "results/jobs/$name.tar.xz"
    echo "written: results/jobs/$name.tar.xz"
done
