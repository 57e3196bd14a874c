#!/usr/bin/env bash
# Classifies a folder of images behind a batch endpoint: from the model to the labelled table, with `az ml`.
#
#   ./deploy-and-run.sh [--keep] [ENDPOINT_NAME]
#
# In Azure:         az login; az configure --defaults group=... workspace=...; ./deploy-and-run.sh
# On this machine:  python -m local_workspace run -- ./deploy-and-run.sh
#
# The endpoint that this run makes is deleted at the end; --keep keeps it (idle, it costs nothing). When a
# step fails, or on Ctrl-C, SIGTERM or SIGHUP, it is deleted too and a job that still runs is cancelled. An
# endpoint that was there before is never deleted. Cluster, model, data and jobs stay: the next run is quick.
#
# Other names: ENDPOINT_NAME, MODEL_NAME and COMPUTE_NAME in the environment.
# Exit codes: 0 done, 1 failed, 2 something is missing and nothing was created, 130 interrupted (SIGTERM: 143,
# SIGHUP: 129).
#
# The lines `# <name>` and `# </name>` hold the snippets of the article: each works pasted alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

ROWS_SHOWN=10                        # of each result
LOG_LINES_SHOWN=20                   # of each log of a failed job
LABELS="model/ImageNetLabels.txt"    # the label of class n is line n + 1
HT_FOLDER="outputs/high-throughput"  # what the high-throughput deployment predicts

STEP="checking what is needed"
PROBLEMS=0
KEEP_ENDPOINT=no
MADE_ENDPOINT=""                     # the endpoint that this run made, until it is deleted
JOB_NAME=""                          # the job that was started last
FINISHED_JOB=""                      # the job that is known to have ended

step() {
    STEP="$1"
    printf '\n== %s\n' "$STEP"
}

complain() {
    printf 'error: %s\n\nhint: %s\n\n' "$1" "$2" >&2
}

missing() {
    complain "$1" "$2"
    PROBLEMS=$((PROBLEMS + 1))
}

has() {
    type -P "$1" > /dev/null
}

# Runs a program on which no signal acts: this script acts on the signal when the program has ended.
to_its_end() {
    (trap '' INT TERM HUP && command "$@")
}

# What makes an endpoint or a job is not cut off: only what is known can be deleted. Nor is a download, which
# would leave half a table. Streaming may take hours: bash acts on a signal at once where it only waits.
az() {
    case "$*" in
        "ml batch-endpoint create "* | "ml batch-endpoint invoke "* | "ml job download "*) to_its_end az "$@" ;;
        "ml job stream "*)
            set -m  # a process group of its own, which clean_up can end
            command az "$@" < /dev/null &
            set +m
            wait "$!"
            ;;
        *) command az "$@" ;;
    esac
}

# Nothing is left half unpacked. unzip itself refuses to leave the folder by `..`, but makes links out of it.
unzip() {
    if [ "$1" = -oq ] && command unzip -Z "$2" | grep '^l' >&2; then
        complain "$2 holds links: see above" "delete it and download it again"
        return 1
    fi
    to_its_end unzip "$@"
}

check_programs() {
    has unzip || missing "unzip is not installed" "sudo apt-get install unzip, or: brew install unzip"
    has wget || has curl || missing "neither wget nor curl is installed" "sudo apt-get install wget"
    has awk || missing "awk is not installed" "sudo apt-get install mawk"
    has az || missing "az, the Azure CLI, is not installed" \
        "https://aka.ms/azure-cli; or with no Azure: python -m local_workspace run -- ./deploy-and-run.sh"
}

check_az() {
    local defaults
    az extension show --name ml --output none 2> /dev/null ||
        missing "az has no ml extension" "az extension add --name ml"
    az account show --output none 2> /dev/null || missing "az is not signed in" "az login"
    defaults="$(az configure --list-defaults --query "[].name" --output tsv 2> /dev/null || true)"
    grep -qx group <<< "$defaults" ||
        missing "no resource group is set" "az configure --defaults group=YOUR_RESOURCE_GROUP"
    grep -qx workspace <<< "$defaults" ||
        missing "no workspace is set" "az configure --defaults workspace=YOUR_WORKSPACE"
}

check_endpoint_name() {
    [[ "$ENDPOINT_NAME" =~ ^[a-z][a-z0-9-]{1,30}[a-z0-9]$ ]] ||
        missing "'$ENDPOINT_NAME' cannot be the name of an endpoint" \
            "3 to 32 lower-case letters, digits and hyphens; a letter first, no hyphen last"
}

# Streaming may end before the job does: the status decides, and is asked until it is a final one.
require_completed() {
    local status
    status="$(az ml job show --name "$1" --query status --output tsv)"
    until [[ "$status" =~ ^(Completed|Failed|Canceled)$ ]]; do
        sleep 10
        status="$(az ml job show --name "$1" --query status --output tsv)"
    done
    FINISHED_JOB="$1"
    if [ "$status" != Completed ]; then
        explain_failure "$1" "$status"
        exit 1
    fi
}

# The scoring itself is a child of the job that `invoke` returns, and has the logs.
scoring_job() {
    az ml job list --parent-job-name "$1" --query "[0].name" --output tsv
}

explain_failure() {
    local folder="outputs/logs/$1" child
    child="$(scoring_job "$1" || true)"
    az ml job download --name "${child:-$1}" --download-path "$folder" > /dev/null 2>&1 || true
    if [ -d "$folder" ]; then
        show_cause "$folder" >&2 || true
        complain "the job $1 ended as $2" "its logs are in $folder"
    else
        complain "the job $1 ended as $2" "its page: az ml job show --name $1 --web"
    fi
}

# What the scoring script raised and the batch executor's summary; without either, the system's own log.
show_cause() {
    local shown=no pattern
    for pattern in '*/logs/user/error/*' '*/logs/job_error*'; do
        show_log "$1" "$pattern" && shown=yes
    done
    for pattern in '*/logs/azureml/*' '*/azureml-logs/*' '*/user_logs/*'; do
        [ "$shown" = yes ] || show_log "$1" "$pattern" && shown=yes
    done
}

# The end of the first log in folder $1 whose path matches $2 and that says something.
show_log() {
    local file
    file="$(find "$1" -type f -size +0 -path "$2" | sort | sed -n 1p)"
    if [ -z "$file" ]; then
        return 1
    fi
    printf -- '-- %s\n' "$file"
    tail -n "$LOG_LINES_SHOWN" "$file"
}

# Where the download of job $2 into folder $1 put its predictions: that depends on the kind of job.
find_predictions() {
    local place
    for place in "$1/named-outputs/score/predictions.csv" "$1/predictions.csv" "$1/score/predictions.csv"; do
        if [ -f "$place" ]; then
            printf '%s\n' "${place#./}"
            return
        fi
    done
    complain "the download of job $2 brought no predictions.csv" \
        "az ml job download --name \"\$(az ml job list --parent-job-name $2 --query '[0].name' -o tsv)\" --all"
    return 1
}

# Rows are `file class probability`, separated by spaces; a file name with spaces is in double quotes.
show_table() {
    LC_ALL=C sort "$1" | LC_ALL=C awk -v labels="$LABELS" -v limit="$ROWS_SHOWN" '
        function cut(text, width) {
            return length(text) > width ? substr(text, 1, width - 3) "..." : text
        }
        function take_quoted(    name) {
            rest = substr(rest, 2)
            while (match(rest, /"/)) {
                name = name substr(rest, 1, RSTART - 1)
                rest = substr(rest, RSTART + 1)
                if (substr(rest, 1, 1) != "\"") break
                name = name "\""
                rest = substr(rest, 2)
            }
            return name
        }
        function take_plain(    name) {
            name = rest
            sub(/ .*/, "", name)
            rest = substr(rest, length(name) + 1)
            return name
        }
        BEGIN {
            while ((getline line < labels) > 0) {
                sub(/\r$/, "", line)
                label[classes++] = line
            }
            printf "%-36s %5s %11s  %s\n", "file", "class", "probability", "label"
        }
        NR <= limit {
            rest = $0
            name = (rest ~ /^"/) ? take_quoted() : take_plain()
            split(rest, field, " ")
            text = (field[1] in label) ? label[field[1]] : "-"
            printf "%-36s %5s %11.6f  %s\n", cut(name, 36), field[1], field[2], cut(text, 24)
        }
        END {
            if (NR > limit) print "..."
            print NR " rows"
        }
    '
}

cancel_job() {
    printf 'Cancelling the job %s\n' "$JOB_NAME" >&2
    az ml job cancel --name "$JOB_NAME" ||
        complain "the job $JOB_NAME may still run" "az ml job cancel --name $JOB_NAME"
}

# Azure may refuse while it still works on the endpoint, hence not once only; the pauses are in seconds.
delete_made_endpoint() {
    local pause
    printf 'Deleting the endpoint %s\n' "$MADE_ENDPOINT" >&2
    for pause in 10 30 0; do
        az ml batch-endpoint delete --name "$MADE_ENDPOINT" --yes && return
        sleep "$pause"
    done
    complain "the endpoint $MADE_ENDPOINT may still be there" \
        "az ml batch-endpoint delete --name $MADE_ENDPOINT --yes"
}

clean_up() {
    local exit_code=$?
    trap '' INT TERM HUP PIPE  # neither a second Ctrl-C nor a closed terminal may leave the endpoint behind,
    set +e                     # nor a line that could not be printed
    rm -f model.zip.part imagenet-1000.zip.part
    if [ "$exit_code" -ne 0 ]; then
        printf '\nStopped with exit code %s while %s\n' "$exit_code" "$STEP" >&2
        kill %% 2> /dev/null  # streaming, if that is what was interrupted
        if [ -n "$JOB_NAME" ] && [ "$JOB_NAME" != "$FINISHED_JOB" ]; then
            cancel_job
        fi
        if [ -n "$MADE_ENDPOINT" ]; then
            delete_made_endpoint
        fi
    fi
    exit "$exit_code"
}

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
ENDPOINT_NAME="${ENDPOINT_NAME:-imagenet-classifier-batch-$(od -An -N3 -tx1 /dev/urandom | tr -d ' \n')}"
# </name_endpoint>

trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

check_programs
if has az; then
    check_az
fi
check_endpoint_name
if [ "$PROBLEMS" -gt 0 ]; then
    exit 2
fi

trap clean_up EXIT
export AZURE_CORE_OUTPUT=none  # what a command made is printed only where it is asked for

step "downloading the model"
# <download_model>
MODEL_URL="https://azuremlexampledata.blob.core.windows.net/data/imagenet/model.zip"
if ! unzip -tq model.zip > /dev/null 2>&1; then
    if command -v wget > /dev/null; then
        wget --no-verbose -O model.zip.part "$MODEL_URL"
    else
        curl --fail --location --silent --show-error -o model.zip.part "$MODEL_URL"
    fi
    unzip -tqq model.zip.part
    mv model.zip.part model.zip
fi
unzip -oq model.zip 'model/*'
# </download_model>

step "registering the model $MODEL_NAME"
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
# <create_endpoint>
az ml batch-endpoint create --file endpoint.yml --name "$ENDPOINT_NAME"
# </create_endpoint>

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
# <download_sample_data>
DATA_URL="https://azuremlexampledata.blob.core.windows.net/data/imagenet/imagenet-1000.zip"
if ! unzip -tq imagenet-1000.zip > /dev/null 2>&1; then
    if command -v wget > /dev/null; then
        wget --no-verbose -O imagenet-1000.zip.part "$DATA_URL"
    else
        curl --fail --location --silent --show-error -o imagenet-1000.zip.part "$DATA_URL"
    fi
    unzip -tqq imagenet-1000.zip.part
    mv imagenet-1000.zip.part imagenet-1000.zip
fi
unzip -oq imagenet-1000.zip -d data
# </download_sample_data>

step "creating the data asset"
# <create_sample_data_asset>
az ml data create --file imagenet-sample-unlabeled.yml
# </create_sample_data_asset>

step "scoring with the default deployment"
# <start_batch_scoring_job>
JOB_NAME=$(az ml batch-endpoint invoke --name "$ENDPOINT_NAME" \
    --input azureml:imagenet-sample-unlabeled@latest --query name --output tsv)
# </start_batch_scoring_job>

# <show_job_in_studio>
az ml job show --name "$JOB_NAME" --web
# </show_job_in_studio>

# <stream_job_logs>
az ml job stream --name "$JOB_NAME" || true  # it fails when the job does: the status tells
# </stream_job_logs>

# <check_job_status>
az ml job show --name "$JOB_NAME" --query status --output tsv
# </check_job_status>
require_completed "$JOB_NAME"

step "downloading the predictions"
rm -f named-outputs/score/predictions.csv predictions.csv  # of an earlier run: never shown as this one's
# <download_outputs>
az ml job download --name "$JOB_NAME" --output-name score --download-path ./
# </download_outputs>
PREDICTIONS="$(find_predictions . "$JOB_NAME")"

step "creating the high-throughput deployment, beside the other"
# <create_deployment_ht>
DEPLOYMENT_NAME="imagenet-classifier-resnetv2-ht"
az ml batch-deployment create --file deployment-by-batch.yml \
    --name "$DEPLOYMENT_NAME" --endpoint-name "$ENDPOINT_NAME" --set \
    model="azureml:${MODEL_NAME:-imagenet-classifier}@latest" compute="azureml:${COMPUTE_NAME:-gpu-cluster}"
# </create_deployment_ht>

step "scoring with the high-throughput deployment, invoked by its name"
# <start_batch_scoring_job_ht>
DEPLOYMENT_NAME="imagenet-classifier-resnetv2-ht"
JOB_NAME=$(az ml batch-endpoint invoke --name "$ENDPOINT_NAME" --deployment-name "$DEPLOYMENT_NAME" \
    --input azureml:imagenet-sample-unlabeled@latest --query name --output tsv)
# </start_batch_scoring_job_ht>

# <set_default>
az ml batch-endpoint update --name "$ENDPOINT_NAME" --set defaults.deployment_name="$DEPLOYMENT_NAME"
# </set_default>

# <stream_job_logs_ht>
az ml job stream --name "$JOB_NAME" || true
# </stream_job_logs_ht>
require_completed "$JOB_NAME"

step "downloading the predictions of the high-throughput deployment"
mkdir -p "$HT_FOLDER"
rm -f "$HT_FOLDER/named-outputs/score/predictions.csv" "$HT_FOLDER/predictions.csv"
# <download_outputs_ht>
az ml job download --name "$JOB_NAME" --output-name score --download-path outputs/high-throughput
# </download_outputs_ht>
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
