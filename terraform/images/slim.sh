#!/bin/sh
# Leaves in a virtual environment what its program loads: sh slim.sh /venv
set -eu
packages=$(echo "$1"/lib/python3*/site-packages)
find "$packages" -depth -type d \( -name tests -o -name include -o -name __pycache__ \) -exec rm -rf {} +
find "$packages" -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.a' \) -delete
# Wheels carry symbols: numcodecs 35 MB of them. Those below *.libs were made to be relocated and stay.
find "$packages" -type f -name '*.so*' ! -path '*.libs/*' -exec strip --strip-unneeded {} +
# For programs in C++; the Python module has the runtime in itself.
rm -f "$packages"/onnxruntime/capi/libonnxruntime.so.*
rm -f "$packages"/pyarrow/*flight*
# Of 400 services of AWS those are spoken to that give credentials.
find "$packages/botocore/data" -mindepth 1 -maxdepth 1 -type d \
  ! -name 'sts' ! -name 'sso*' ! -name 's3' ! -name 'signin' -exec rm -rf {} +
