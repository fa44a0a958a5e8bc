#!/bin/sh
# weft study engines on 2 GPUs of one host, weft beside vLLM, in nine minutes and without a network:
#
#     sh benchmarks/study_engines_gpu.sh VLLM OUT [OPTIONS]
#
# VLLM: a folder with vLLM and what it needs; OUT: where study.json, report.html and details.tgz go.
# More OPTIONS go to the study: --layouts tp4 for four GPUs, --engines weft,weft-library, and so on.
set -u
vllm=$1 out=$2
shift 2
export PYTHONPATH="$PWD/src:$vllm" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0 NCCL_NVLS_ENABLE=0
export VLLM_ALLREDUCE_USE_SYMM_MEM=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1
folder=$(mktemp -d)
timeout -s INT -k 30 560 python3 -m weft study engines --engines weft,vllm --layouts tp2,1,pp2 \
    --model llama-3.1-8b --weights dummy --workloads prefill-heavy,decode-heavy=128/256/8 \
    --requests 8 --concurrency 1,8 --rates '' --seconds 12 --profile-tokens 16 \
    --goodput ttft:1000,tpot:20 --accelerator h200-sxm \
    --ready 240 --time-limit 470 --output "$folder" "$@"
code=$?
cd "$folder" || exit 1
mkdir -p "$out"
cp study.json report.html "$out" 2> /dev/null
tail -n 30 logs/*.log > logs/tails.txt
tar czf "$out/details.tgz" cases logs/tails.txt traces/*/import.json 2> /dev/null
ls -l "$out"
exit $code
