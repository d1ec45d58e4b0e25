#!/usr/bin/env bash
# Everything that only a GPU can show, in 15 minutes: paths that nothing else takes, checked; the step beside the bare
# backbone and lightly; embedding; and a run from the command line, stopped, resumed and evaluated.
#
#   pip install -e ".[dev]" lightly
#   recipes/bench/gpu_day.sh GROCERY runs/gpu-day              # GROCERY: class folders below train/ and test/
#   recipes/bench/gpu_day.sh GROCERY runs/gpu-day --full       # then rationale_gpu.sh: hours, goes on where it stopped
#   recipes/bench/gpu_day.sh demo runs/rehearsal --rehearse    # on a CPU: that each part starts
#
# Settings: DEVICE (cuda), BACKBONE (resnet50), SIZE (224), BATCH (256). A part that fails does not stop the others; its
# log is OUTPUT/PART.log, and the last lines are a table of all parts. Exit code 1 where one failed.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=${1:?folder of photographs with train/ and test/, or demo}
output=${2:?folder for the results}
mode=${3:-}
device=${DEVICE:-cuda} backbone=${BACKBONE:-resnet50} size=${SIZE:-224} batch=${BATCH:-256} steps=100 quick=(--rounds 3 --compile)
if [ "$mode" = --rehearse ]; then
    device=cpu backbone=${BACKBONE:-test_resnet} size=${SIZE:-64} batch=${BATCH:-8} steps=6 quick=(--quick)
fi
mkdir -p "$output"
failed=0 table=()

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS code=0
    shift 2
    [ "$mode" != --rehearse ] || limit=$((4 * limit))
    echo "== $name: $*" >&2
    timeout --signal=TERM --kill-after=30 "$limit" "$@" >"$output/$name.out" 2>"$output/$name.log" || code=$?
    [ "$code" = 0 ] || { failed=1; tail -n 15 "$output/$name.out" "$output/$name.log" >&2; }
    table+=("$(printf '%-12s %-28s %5d s' "$name" "$([ $code = 0 ] && echo ok || echo "FAILED (code $code)")" $((SECONDS - start)))")
}

trained() { # a run that is stopped after half its steps, resumed, and evaluated
    local run=$output/run
    rm -rf "$run"
    python -m fgssl pretrain --data "$data" --backbone "$backbone" --image-size "$size" --batch-size "$batch" \
        --device "$device" --no-pretrained --objective mocov2 --epochs 1000 --max-steps "$steps" --save-every "$((steps / 2))" \
        --set training.log_every=1 --output "$run" &
    local process=$!
    while kill -0 $process 2>/dev/null && ! ls "$run"/resume/*.sha256 >/dev/null 2>&1; do sleep 0.2; done
    kill -TERM $process 2>/dev/null
    wait $process
    [ -e "$run/encoder.safetensors" ] || python -m fgssl pretrain --resume "$run" || return
    python -m fgssl retrieve "$run" --device "$device" --json
}
export -f trained
export output data backbone size batch device steps

part device 30 python -c "import torch; d = torch.device('$device'); torch.ones(1, device=d); \
print(torch.__version__, d, torch.cuda.get_device_name(d) if d.type == 'cuda' else '')"
part checks 300 env FGSSL_GPU_TESTS="$device" python -m pytest -m gpu -n 0 -rs --durations=0 "$here/../../tests/training/test_gpu.py"
part step_table 330 python "$here/step_table.py" --data "$data" --device "$device" --backbone "$backbone" \
    --image-size "$size" --batch-size "$batch" "${quick[@]}" --output "$output/step_table.json"
part run 180 bash -c trained
part embed_speed 60 python "$here/embed_speed.py" "$output/run" --data "$data" --device "$device" \
    --images "$((4 * batch))" --batch-size "$batch" --rounds 2 --output "$output/embed_speed.json"

echo
grep -v '^$' "$output/step_table.log" | tail -n 40
echo
tail -n 3 "$output/embed_speed.log"
echo
grep -E 'passed|failed|SKIPPED' "$output/checks.out"
printf '%s\n' "${table[@]}" | tee "$output/parts.txt"
[ "$mode" != --full ] || [ $failed = 1 ] || exec "$here/rationale_gpu.sh" "$data" "$output/rationale"
exit $failed
