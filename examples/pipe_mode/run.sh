#!/bin/sh
# Runs the example in a folder, from the data set to the model in the bucket: run.sh FOLDER [SOURCE]
# It may be run again in the same folder.
# PYTHON is an interpreter that has sm-runtime[s3] and TensorFlow; rclone is on the PATH or beside it.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd)
folder=${1:?usage: run.sh FOLDER [SOURCE]}
source=${2:-/usr/share/datasets/fashion-mnist}
python=${PYTHON:-python3}
port=${PORT:-8099}
PATH=$(dirname -- "$(command -v "$python")"):$PATH

mkdir -p "$folder/s3/fashion-mnist" "$folder/ml/input/config" "$folder/ml/code"
[ -e "$folder/s3/fashion-mnist/training" ] ||
    "$python" "$here/prepare_data.py" --source "$source" "$folder/s3/fashion-mnist"
cp -R "$here/source/." "$folder/ml/code"
cp "$here"/*.json "$folder/ml/input/config"

AWS_ACCESS_KEY_ID=only-on-this-machine AWS_SECRET_ACCESS_KEY=not-a-secret-key
AWS_ENDPOINT_URL_S3=http://127.0.0.1:$port AWS_DEFAULT_REGION=us-east-1
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_ENDPOINT_URL_S3 AWS_DEFAULT_REGION
rclone serve s3 --addr "127.0.0.1:$port" --auth-key "$AWS_ACCESS_KEY_ID,$AWS_SECRET_ACCESS_KEY" \
    --config "$folder/rclone.conf" "$folder/s3" 2>"$folder/rclone.log" &
server=$!
trap 'kill "$server"' EXIT

SAGEMAKER_BASE_DIR=$folder/ml "$python" -m sm_runtime train
ls -l "$folder/s3/fashion-mnist/artifacts/fashion-mnist-pipe/output"
