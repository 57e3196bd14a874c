#!/usr/bin/env bash
# Classifies a folder of images behind a batch endpoint: from the model to the labelled table, with `az ml`.
#
#   ./deploy-and-run.sh [--keep] [ENDPOINT_NAME]
#
# In Azure:         az login; az configure --defaults group=... workspace=...; ./deploy-and-run.sh
# On this machine:  python -m local_workspace run -- ./deploy-and-run.sh
#
# The model is in model/, the photos in data/. Either is used as it is where it is there, and never written to;
# else the article's is downloaded. A model that stands in for the article's (model/STAND-IN.txt says so) is
# registered under another subscription than its own only by a name that you give: MODEL_NAME=NAME.
#
# The endpoint that this run makes is deleted at the end; --keep keeps it (idle, it costs nothing). When a
# step fails, or on Ctrl-C, SIGTERM or SIGHUP, it is deleted too and a job that still runs is cancelled. An
# endpoint that was there before is never deleted. Cluster, model, data and jobs stay: the next run is quick.
#
# Other names: ENDPOINT_NAME, MODEL_NAME and COMPUTE_NAME in the environment.
# Exit codes: 0 done, 1 failed, 2 something is missing and nothing was created, 130 interrupted (SIGTERM: 143,
# SIGHUP: 129).
#
# The lines `# <name>` and `# </name>` hold the snippets of the article: each works pasted alone. What is around
# them is in deploy-and-run-checks.sh.
set -euo pipefail
unset CDPATH  # with which cd would look elsewhere
[[ "${BASH_SOURCE[0]}" != */* ]] || cd -- "${BASH_SOURCE[0]%/*}/"

# shellcheck source=/dev/null  # it is checked by itself
source ./deploy-and-run-checks.sh
KEEP_ENDPOINT=no

for argument in "$@"; do
    case "$argument" in
        --keep) KEEP_ENDPOINT=yes ;;
        -h | --help)
            sed -n '2,/^set /{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]##*/}"
            exit 0
            ;;
        -*)
            complain "$argument is not an option of deploy-and-run.sh" "./deploy-and-run.sh --help"
            exit 2
            ;;
        *) ENDPOINT_NAME="$argument" ;;
    esac
done

# <set_variables>
MODEL_NAME="${MODEL_NAME:-imagenet-classifier}"
COMPUTE_NAME="${COMPUTE_NAME:-gpu-cluster}"
# </set_variables>

# <name_endpoint>
# The name of an endpoint is unique in its Azure region, hence the random end: 32 characters are the limit.
ENDPOINT_NAME="${ENDPOINT_NAME:-imagenet-classifier-batch-$(printf '%06x' $((RANDOM * 512 + RANDOM % 512)))}"
# </name_endpoint>

trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

check_what_is_needed

trap clean_up EXIT
delete_partial                 # what a run that was killed has left
export AZURE_CORE_OUTPUT=none  # what a command made is printed only where it is asked for

step "downloading the model"
say_if_used model
# <download_model>
MODEL_URL="https://azuremlexampledata.blob.core.windows.net/data/imagenet/model.zip"
if [ ! -e model ] && [ ! -e model.zip ]; then
    if command -v wget > /dev/null; then
        wget --no-verbose -O model.zip.part "$MODEL_URL"
    else
        curl --fail --location --silent --show-error -o model.zip.part "$MODEL_URL"
    fi
    unzip -tqq model.zip.part
    mv model.zip.part model.zip
fi
if [ ! -e model ] && ! unzip -Z model.zip | grep '^l' >&2; then  # a link may lead out of the folder
    unzip -oq model.zip 'model/*' -d deploy-and-run.part
    find deploy-and-run.part \( -path '*/__MACOSX*' -o -name '._*' -o -name .DS_Store \) -delete  # of a Mac
    mv deploy-and-run.part/model model
    find deploy-and-run.part -delete
fi
# </download_model>
require_unpacked model model.zip

step "registering the model $MODEL_NAME"
check_model
# <register_model>
MODEL_NAME="${MODEL_NAME:-imagenet-classifier}"
az ml model create --name "$MODEL_NAME" --path "model"
# </register_model>

step "creating the compute cluster $COMPUTE_NAME, unless it is there"
# <create_compute>
az ml compute show --name "${COMPUTE_NAME:-gpu-cluster}" 2> /dev/null ||
    az ml compute create --name "${COMPUTE_NAME:-gpu-cluster}" --type amlcompute \
        --size STANDARD_NC4AS_T4_V3 --min-instances 0 --max-instances 2
# </create_compute>

step "creating the endpoint $ENDPOINT_NAME"
SAME_NAME="$(az ml batch-endpoint list --query "[?name=='$ENDPOINT_NAME'].name" --output tsv)"
if [ -z "$SAME_NAME" ]; then
    MADE_ENDPOINT="$ENDPOINT_NAME"
fi
(hold_signals
# <create_endpoint>
az ml batch-endpoint create --file endpoint.yml --name "$ENDPOINT_NAME"
# </create_endpoint>
)

# <query_endpoint>
az ml batch-endpoint show --name "$ENDPOINT_NAME" --output yaml
# </query_endpoint>

step "creating the deployment that scores one image at a time, as the endpoint's default"
# <create_deployment>
DEPLOYMENT_NAME="imagenet-classifier-resnetv2"
az ml batch-deployment create --file deployment-by-file.yml \
    --name "$DEPLOYMENT_NAME" --endpoint-name "$ENDPOINT_NAME" --set-default --set \
    model="azureml:${MODEL_NAME:-imagenet-classifier}@latest" compute="azureml:${COMPUTE_NAME:-gpu-cluster}"
# </create_deployment>

# <query_deployment>
DEPLOYMENT_NAME="imagenet-classifier-resnetv2"
az ml batch-deployment show --name "$DEPLOYMENT_NAME" --endpoint-name "$ENDPOINT_NAME" --output yaml
# </query_deployment>

step "downloading the sample images"
say_if_used data
# <download_sample_data>
DATA_URL="https://azuremlexampledata.blob.core.windows.net/data/imagenet/imagenet-1000.zip"
if [ ! -e data ] && [ ! -e imagenet-1000.zip ]; then
    if command -v wget > /dev/null; then
        wget --no-verbose -O imagenet-1000.zip.part "$DATA_URL"
    else
        curl --fail --location --silent --show-error -o imagenet-1000.zip.part "$DATA_URL"
    fi
    unzip -tqq imagenet-1000.zip.part
    mv imagenet-1000.zip.part imagenet-1000.zip
fi
if [ ! -e data ] && ! unzip -Z imagenet-1000.zip | grep '^l' >&2; then  # a link may lead out of the folder
    unzip -oq imagenet-1000.zip -d deploy-and-run.part
    find deploy-and-run.part \( -path '*/__MACOSX*' -o -name '._*' -o -name .DS_Store \) -delete  # of a Mac
    mv deploy-and-run.part data
fi
# </download_sample_data>
require_unpacked data imagenet-1000.zip

step "creating the data asset"
# <create_sample_data_asset>
az ml data create --file imagenet-sample-unlabeled.yml
# </create_sample_data_asset>

step "scoring with the default deployment"
JOB_NAME="$(hold_signals
# <start_batch_scoring_job>
JOB_NAME=$(az ml batch-endpoint invoke --name "$ENDPOINT_NAME" \
    --input azureml:imagenet-sample-unlabeled@latest --query name --output tsv)
# </start_batch_scoring_job>
printf '%s\n' "$JOB_NAME")"

# <show_job_in_studio>
az ml job show --name "$JOB_NAME" --web
# </show_job_in_studio>

set -m  # a process group of its own, which clean_up ends
(
# <stream_job_logs>
az ml job stream --name "$JOB_NAME" || true  # it fails when the job does: the status tells
# </stream_job_logs>
) < /dev/null &
set +m
wait "$!"

# <check_job_status>
az ml job show --name "$JOB_NAME" --query status --output tsv
# </check_job_status>
require_completed "$JOB_NAME"

step "downloading the predictions"
set_aside .
(hold_signals
# <download_outputs>
az ml job download --name "$JOB_NAME" --output-name score --download-path ./
# </download_outputs>
)
PREDICTIONS="$(find_predictions . "$JOB_NAME")"

step "creating the high-throughput deployment, beside the other"
# <create_deployment_ht>
DEPLOYMENT_NAME="imagenet-classifier-resnetv2-ht"
az ml batch-deployment create --file deployment-by-batch.yml \
    --name "$DEPLOYMENT_NAME" --endpoint-name "$ENDPOINT_NAME" --set \
    model="azureml:${MODEL_NAME:-imagenet-classifier}@latest" compute="azureml:${COMPUTE_NAME:-gpu-cluster}"
# </create_deployment_ht>

step "scoring with the high-throughput deployment, invoked by its name"
# shellcheck disable=SC2030  # DEPLOYMENT_NAME: create_deployment_ht has set it, too, and in no subshell
JOB_NAME="$(hold_signals
# <start_batch_scoring_job_ht>
DEPLOYMENT_NAME="imagenet-classifier-resnetv2-ht"
JOB_NAME=$(az ml batch-endpoint invoke --name "$ENDPOINT_NAME" --deployment-name "$DEPLOYMENT_NAME" \
    --input azureml:imagenet-sample-unlabeled@latest --query name --output tsv)
# </start_batch_scoring_job_ht>
printf '%s\n' "$JOB_NAME")"

# shellcheck disable=SC2031
# <set_default>
az ml batch-endpoint update --name "$ENDPOINT_NAME" --set defaults.deployment_name="$DEPLOYMENT_NAME"
# </set_default>

set -m  # a process group of its own, which clean_up ends
(
# <stream_job_logs_ht>
az ml job stream --name "$JOB_NAME" || true
# </stream_job_logs_ht>
) < /dev/null &
set +m
wait "$!"
require_completed "$JOB_NAME"

step "downloading the predictions of the high-throughput deployment"
set_aside "$HT_FOLDER"
(hold_signals
# <download_outputs_ht>
az ml job download --name "$JOB_NAME" --output-name score --download-path outputs/high-throughput
# </download_outputs_ht>
)
PREDICTIONS_HT="$(find_predictions "$HT_FOLDER" "$JOB_NAME")"

step "one image at a time: $PREDICTIONS"
show_table "$PREDICTIONS"
step "high throughput: $PREDICTIONS_HT"
show_table "$PREDICTIONS_HT"

if [ -z "$MADE_ENDPOINT" ] || [ "$KEEP_ENDPOINT" = yes ]; then
    printf '\nThe endpoint %s stays. To delete it: az ml batch-endpoint delete --name %s --yes\n' \
        "$ENDPOINT_NAME" "$ENDPOINT_NAME"
    exit 0
fi

step "deleting the endpoint $ENDPOINT_NAME (--keep keeps it; jobs, model and data stay)"
# <delete_endpoint>
az ml batch-endpoint delete --name "$ENDPOINT_NAME" --yes
# </delete_endpoint>
MADE_ENDPOINT=""
