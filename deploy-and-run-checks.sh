#!/usr/bin/env bash
# What deploy-and-run.sh, which sources this file, does around the snippets of the article: its checks, the
# user's files that it leaves alone, the table, the report of a failed job, signals and the clean-up.

ROWS_SHOWN=10                  # of each result
LOG_LINES_SHOWN=20             # of each log of a failed job
STAND_IN="model/STAND-IN.txt"  # is there where model/ stands in for the article's, and says for which subscription
HT_FOLDER="outputs/high-throughput"  # what the high-throughput deployment predicts

STEP="checking what is needed"
PROBLEMS=0
MADE_ENDPOINT=""  # the endpoint that this run made, until it is deleted
JOB_NAME=""       # the job that was started last
FINISHED_JOB=""   # the job that is known to have ended
MODEL_NAME_WAS_SET="${MODEL_NAME:+yes}"

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

# What is needed

check_what_is_needed() {
    check_programs
    if has az; then
        check_az
    fi
    check_endpoint_name
    check_folder model "a model"
    check_folder data photos
    if [ "$PROBLEMS" -gt 0 ]; then
        exit 2
    fi
}

check_programs() {
    local name
    for name in find grep mkdir mv rm sed sleep sort tail; do
        has "$name" || missing "$name is not installed" "sudo apt-get install coreutils findutils grep sed"
    done
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
    defaults=" $(az configure --list-defaults --query "[].name" --output tsv 2> /dev/null || true) "
    [[ "$defaults" =~ [[:space:]]group[[:space:]] ]] ||
        missing "no resource group is set" "az configure --defaults group=YOUR_RESOURCE_GROUP"
    [[ "$defaults" =~ [[:space:]]workspace[[:space:]] ]] ||
        missing "no workspace is set" "az configure --defaults workspace=YOUR_WORKSPACE"
}

check_endpoint_name() {
    [[ "$ENDPOINT_NAME" =~ ^[a-z][a-z0-9-]{1,30}[a-z0-9]$ ]] ||
        missing "'$ENDPOINT_NAME' cannot be the name of an endpoint" \
            "3 to 32 lower-case letters, digits and hyphens; a letter first, no hyphen last"
}

# A folder $1 that is there is used as it is, so it has to hold $2.
check_folder() {
    if { [ -e "$1" ] || [ -L "$1" ]; } && ! holds_files "$1"; then
        missing "$1 is there, and is no folder with files in it" \
            "put $2 there; or delete it, and the article's are downloaded"
    fi
}

holds_files() {
    [ -d "$1" ] && [ -n "$(find "$1/" -type f | sed 1q)" ]
}

# The user's files

say_if_used() {
    if [ -e "$1" ]; then
        printf '%s/ is there and is used as it is: nothing is downloaded\n' "$1"
    fi
}

# After the snippet that unpacks the zip $2 into the folder $1.
require_unpacked() {
    if holds_files "$1"; then
        return
    fi
    if unzip -Z "$2" | grep '^l' > /dev/null; then  # not -q, which would end unzip early and fail the pipe
        complain "$2 holds links: see above" "delete it and download it again"
    else
        complain "$2 holds no files for $1/" "delete it and download it again"
    fi
    return 1
}

# Says which model is registered. One that stands in for the article's gets the article's name in the
# subscription that it was made for, and elsewhere only if MODEL_NAME was set.
check_model() {
    local names
    names="$(printf ' %s' model/*)"
    printf 'model/ holds%s\n' "${names// model\// }"
    if [ -f "$STAND_IN" ]; then
        sed 's/^/    /' "$STAND_IN"
        [ "$MODEL_NAME_WAS_SET" = yes ] || check_subscription
    fi
}

check_subscription() {
    if ! grep -qxF "subscription: $(az account show --query id --output tsv)" "$STAND_IN"; then
        complain "model/ stands in for the article's model, and was not made for this subscription: $STAND_IN" \
            "make clean deletes what a local run left, and the article's is downloaded;
      or register this one by a name that you give: MODEL_NAME=NAME ./deploy-and-run.sh"
        return 2
    fi
}

# Where a download into the folder $1 may put its predictions: that depends on the kind of job.
places() {
    printf '%s\n' "$1/named-outputs/score/predictions.csv" "$1/predictions.csv" "$1/score/predictions.csv"
}

# What is there before a download is another job's: neither overwritten nor shown as this one's.
set_aside() {
    local place
    mkdir -p "$1"
    bring_back "$1"  # what a run that was killed set aside
    while IFS= read -r place; do
        if [ -e "$place" ]; then
            mv "$place" "$place.earlier"
        fi
    done <<< "$(places "$1")"
}

# Back to its place where that is free. Else it gets a number, unless it is what came in its place.
bring_back() {
    local place number
    while IFS= read -r place; do
        if [ ! -e "$place.earlier" ]; then
            continue
        elif [ ! -e "$place" ]; then
            mv "$place.earlier" "$place"
        elif [ "$(< "$place")" = "$(< "$place.earlier")" ]; then
            rm -f "$place.earlier"
        else
            number=1
            while [ -e "$place.$number" ]; do
                number=$((number + 1))
            done
            mv "$place.earlier" "$place.$number"
            printf 'The earlier %s is now %s\n' "${place#./}" "${place#./}.$number" >&2
        fi
    done <<< "$(places "$1")"
}

# The predictions

# Where the download of job $2 into folder $1 put them; then what was set aside goes back.
find_predictions() {
    local place found=""
    while IFS= read -r place; do
        if [ -z "$found" ] && [ -f "$place" ]; then
            found="${place#./}"
        fi
    done <<< "$(places "$1")"
    bring_back "$1"
    if [ -z "$found" ]; then
        complain "the download of job $2 brought no predictions.csv" \
            "az ml job download --name \"\$(az ml job list --parent-job-name $2 --query '[0].name' -o tsv)\" --all"
        return 1
    fi
    printf '%s\n' "$found"
}

# The labels of the model in model/, which is the one that this run has registered.
find_labels() {
    local folder file
    for folder in model/*/ model/; do
        for file in "${folder}ImageNetLabels.txt" "${folder}labels.txt"; do
            if [ -f "$file" ] && { [ -f "${folder}saved_model.pb" ] || [ "$folder" = model/ ]; }; then
                printf '%s\n' "$file"
                return
            fi
        done
    done
}

# Rows are `file class probability`, separated by spaces; a file name with spaces is in double quotes. The
# label of class n is line n + 1.
show_table() {
    local labels
    labels="$(find_labels)"
    LC_ALL=C sort "$1" | LC_ALL=C awk -v labels="$labels" -v limit="$ROWS_SHOWN" '
        function cut(text, width) {
            return length(text) > width ? substr(text, 1, width - 3) "..." : text
        }
        BEGIN {
            while (labels && (getline line < labels) > 0) {
                sub(/\r$/, "", line)
                if (!classes) sub(/^\357\273\277/, "", line)  # of Windows
                label[classes++] = line
            }
        }
        {
            match($0, /^("([^"]|"")*"|[^" ][^ ]*)/)
            split(substr($0, RLENGTH + 1), field, " ")
            if (field[1] + 0 > largest) largest = field[1] + 0
        }
        NR <= limit {
            name = substr($0, 1, RLENGTH)
            if (name ~ /^"/) {
                name = substr(name, 2, RLENGTH - 2)
                gsub(/""/, "\"", name)
            }
            file[NR] = name
            class[NR] = field[1]
            probability[NR] = field[2]
        }
        END {
            printf "%-36s %5s %11s  %s\n", "file", "class", "probability", "label"
            for (row = 1; row in file; row++) {
                text = largest < classes ? label[class[row]] : "class " class[row]
                printf "%-36s %5s %11.6f  %s\n", cut(file[row], 36), class[row], probability[row], cut(text, 24)
            }
            if (NR > limit) print "..."
            print NR " rows"
            if (!classes) print "no labels: model/ has no ImageNetLabels.txt and no labels.txt"
            else if (largest >= classes)
                print "no labels: " labels " has " classes " lines, too few for class " largest
        }
    '
}

# The report of a failed job

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

# Signals and the clean-up

# Called first in a subshell, in which no signal acts from then on, nor on the programs that it starts:
# deploy-and-run.sh acts on the signal when the subshell has ended. What makes an endpoint or a job is held so,
# because only what is known can be deleted; and a download, which would leave half a table.
hold_signals() {
    set -e  # which bash turns off in $( )
    trap '' INT TERM HUP
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

# deploy-and-run.part: a zip is unpacked there, and what it held is moved to its place whole.
delete_partial() {
    rm -f model.zip.part imagenet-1000.zip.part
    if [ -d deploy-and-run.part ]; then
        find deploy-and-run.part -delete
    fi
}

clean_up() {
    local exit_code=$?
    trap '' INT TERM HUP PIPE  # neither a second Ctrl-C nor a closed terminal may leave the endpoint behind,
    set +e                     # nor a line that could not be printed
    delete_partial
    bring_back .
    bring_back "$HT_FOLDER"
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
