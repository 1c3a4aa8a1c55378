#!/usr/bin/env bash
# All that a GPU is needed for, in under ten minutes on one card and without a network: writes gpu.json and gpu.md into ${OUT:-.}.
#   OUT=results bash tests/gpu.sh             a Python with torch, numpy and tiktoken in PYTHON, one with TRL in PEERS
#   OUT=results bash tests/gpu.sh --tiny      the same parts at tiny sizes on tests/fakecuda.py: does this script work?
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" tests/gpu.py "$@"
