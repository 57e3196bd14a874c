#!/usr/bin/env bash
# Answers what deploy-and-run.sh asks as az would, by the variables AZ_..., and writes the commands down.
# Number AZ_CALL of the calls sends AZ_SIGNALS to AZ_TARGET, AZ_WHEN: `before` or `after` it does its work.
send_signals() {
    for signal in $AZ_SIGNALS; do
        kill -s "$signal" -- "$AZ_TARGET"
    done
}
if [ "$(($(grep -c '' "$AZ_COMMANDS") + 1))" = "${AZ_CALL:-}" ]; then
    if [ "$AZ_WHEN" = before ]; then send_signals; else trap send_signals EXIT; fi
fi
echo "$*" >> "$AZ_COMMANDS"
case "$*" in
    "extension show"*) exit "${AZ_EXTENSION:-0}" ;;
    "account show --query id"*) echo "${AZ_SUBSCRIPTION:-}" ;;
    "account show"*) exit "${AZ_ACCOUNT:-0}" ;;
    "configure --list-defaults"*) printf '%b' "${AZ_DEFAULTS-group\nworkspace\n}" ;;
    "ml batch-endpoint list"*) echo "${AZ_ENDPOINTS:-}" ;;
    "ml batch-endpoint invoke"*) echo "job-$(grep -c '^ml batch-endpoint invoke' "$AZ_COMMANDS")" ;;
    "ml batch-endpoint delete"*) exit "${AZ_DELETE:-0}" ;;
    "ml job cancel"*) exit "${AZ_CANCEL:-0}" ;;
    "ml batch-deployment create"*) exit "${AZ_DEPLOYMENT:-0}" ;;
    "ml job stream"*) sleep "${AZ_SECONDS:-0}" ;;
    "ml job show"*status*) echo "${AZ_STATUS:-Completed}" ;;
    "ml job list"*) echo child-1 ;;
    "ml job download"*--output-name*)
        folder="${*: -1}${AZ_PLACE-/named-outputs/score}"
        mkdir -p "$folder"
        printf '%b' "$AZ_PREDICTIONS" > "$folder/predictions.csv" ;;
    "ml job download"*)
        mkdir -p "${*: -1}/artifacts/logs/user/error/node"
        echo "ValueError: not a photo" > "${*: -1}/artifacts/logs/user/error/node/process000.txt" ;;
esac
