#!/bin/bash
# The GPU all-reduce of this machine: tests, benchmarks beside the peers, calibration.
# Usage: bash benchmarks/allreduce_device.sh FOLDER [STEP ...]      (all steps without names)
# Every step is bounded; what it prints and measures goes into FOLDER, after each step into
# one archive ($ARCHIVE, default FOLDER/all.tgz).
cd "$(dirname "$0")/.." || exit 1
out=$1; shift
steps=${*:-doctor nvshmem flat pair nodes tcp lanes calibrate eager tests cycles}
gpus=$(nvidia-smi -L | wc -l)
export PYTHONPATH=src:benchmarks PYTHONUNBUFFERED=1 WEFT_GPU_TESTS=${WEFT_GPU_TESTS:-quick}
export XDG_CONFIG_HOME=$out/config
mkdir -p "$out"

bounded() {  # seconds, file for stdout, command
  local limit=$1 file=$2 start=$SECONDS; shift 2
  timeout -k 5 "$limit" "$@" >"$out/$file" 2>"$out/$file.err"
  local status=$?
  echo "=== $file: exit $status after $((SECONDS - start)) s"
  [ $status = 0 ] || tail -n 12 "$out/$file.err" "$out/$file" | cut -c1-400
}
bench() {  # seconds, file, options
  local limit=$1 file=$2; shift 2
  bounded "$limit" "$file" python3 -m weft bench allreduce --device cuda --format json "$@"
  python3 benchmarks/allreduce_summary.py "$out/$file"
  grep -h "^not measured" "$out/$file.err"
}
pytests() {  # seconds, file, options
  local limit=$1 file=$2; shift 2
  bounded "$limit" "$file" python3 -m pytest tests/gpu/test_allreduce_device.py \
    tests/gpu/test_allreduce_commands.py -p no:cacheprovider -vv -rfEs -n 3 "$@"
  grep -E "^(FAILED|ERROR|SKIPPED)" "$out/$file" | cut -c1-300
  echo "$(grep -c ' PASSED ' "$out/$file") passed; $(tail -n 1 "$out/$file")"
}
half=$((gpus / 2))

for step in $steps; do
  case $step in
    doctor) bounded 60 doctor.txt python3 -m weft doctor; grep -E "all-reduce|peer" "$out/doctor.txt" ;;
    nvshmem) pytests 90 nvshmem.txt -k nvshmem ;;
    flat) bench 90 flat.json --ranks-per-node "$gpus" --sizes 1K:64M --rounds 12 ;;
    pair) bench 80 pair.json --ranks-per-node 2 --sizes 1K:64M --rounds 12 ;;
    nodes)
      bench 60 nodes.json --nodes 2 --ranks-per-node $half --sizes 8K:4M --rounds 12 \
        --transports peer,nvshmem \
        --algorithms two_shot,hierarchical_direct,hierarchical_doubling,hierarchical_nvshmem
      [ "$gpus" = 2 ] || bench 60 single.json --nodes "$gpus" --ranks-per-node 1 --sizes 8K:4M \
        --rounds 12 --transports peer,nvshmem \
        --algorithms two_shot,hierarchical_direct,hierarchical_doubling,hierarchical_nvshmem ;;
    tcp) bench 75 tcp.json --nodes 2 --ranks-per-node $half --sizes 8K:32M --rounds 12 \
        --transports tcp --algorithms hierarchical_host --timeout 15 ;;
    lanes)
      for lanes in 2 6; do
        bounded 50 lanes$lanes.txt python3 benchmarks/allreduce_variants.py --ranks "$gpus" --nodes 2 \
          --transport tcp --lanes $lanes --sizes 8K:2M --rounds 12 -o "$out/lanes$lanes.json"
        grep backend "$out/lanes$lanes.txt"
      done ;;
    calibrate)
      bounded 90 calibrate.txt python3 -m weft calibrate --device cuda --seconds 20 --check
      tail -n 2 "$out/calibrate.txt.err" | cut -c1-300
      bench 60 calibrated.json --ranks-per-node "$gpus" --sizes 8K,128K,512K,4M,64M --rounds 8 \
        --algorithms auto,one_shot,two_shot ;;
    eager) bench 60 eager.json --ranks-per-node "$gpus" --sizes 8K,128K,1M --rounds 8 --mode eager ;;
    tests) pytests 150 tests.txt -k "not nvshmem and not create_and_destroy" ;;
    cycles) WEFT_GPU_TESTS=full pytests 75 cycles.txt -k create_and_destroy ;;
    *) echo "unknown step $step" ;;
  esac
  tar -C "$out" -czf "${ARCHIVE:-$out/all.tgz}" --exclude=all.tgz .
done
