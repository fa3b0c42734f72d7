# shellcheck shell=bash
# What a concern may report. Only `want` and its variants change anything, and only under `apply`.

# Set if a value differs from the wanted one and was not changed.
PENDING=''
WHY='' EFFECT=''

title() { printf '\n== %s: %s\n' "$CONCERN" "$1"; }
found() { printf 'found    %s\n' "$1"; }
skip() { printf 'skipped: %s\n' "$1"; }
# Something that this tool cannot or should not do itself.
advise() { printf "advice   %s\n" "$*"; }

# The reason for the next wants and their expected effect; printed once, before the first change.
because() {
    WHY=$1
    EFFECT=$2
}

# want PATH VALUE: the file should hold this value.
want() { want_as exact "$1" "$2"; }
# want_at_least PATH NUMBER: a larger value is fine too.
want_at_least() { want_as at_least "$1" "$2"; }
# want_mask PATH MASK: leading zeros do not count.
want_mask() { want_as mask "$1" "$2"; }

want_as() {
    local kind=$1 path=$2 value=$3 now
    if ! exists "$path"; then
        skip "$path: not on this host"
        return
    fi
    if ! now=$(value_of "$path"); then
        skip "$path: cannot be read here"
        return
    fi
    if holds "$kind" "$now" "$value"; then
        printf 'fine     %s = %s\n' "$path" "$now"
        return
    fi
    if [ -n "$WHY" ]; then
        printf 'why      %s\n' "$WHY"
        printf 'effect   %s\n' "$EFFECT"
        WHY=''
    fi
    if [ -z "$WRITES" ]; then
        printf 'change   %s: %s -> %s\n' "$path" "$now" "$value"
        # shellcheck disable=SC2034 # tune reads it.
        PENDING=1
        return
    fi
    change "$path" "$now" "$value"
}

holds() {
    case $1 in
    exact) [ "$2" = "$3" ] ;;
    at_least) is_huge "$2" || { [[ $2 =~ ^[0-9]+$ ]] && [ "$2" -ge "$3" ]; } ;;
    mask) [ "$(bare_mask "$2")" = "$(bare_mask "$3")" ] ;;
    esac
}

# fs.file-max may be the largest 64-bit number, which the shell cannot compare.
is_huge() { [[ $1 =~ ^[0-9]{19,}$ ]]; }

# The state is written before the value: a run that dies in between leaves a record of a change
# that did not happen, which revert recognizes; in the opposite order the old value would be lost.
change() {
    local path=$1 before=$2 value=$3 reason now recorded=''
    state_has "$path" && recorded=1
    state_put "$CONCERN" "$path" "$before" "$value"
    if reason=$(write_value "$path" "$value"); then reason="the kernel keeps $before"; fi
    # The kernel rounds some values; revert compares with the rounded one.
    now=$(value_of "$path")
    if [ "$now" != "$before" ]; then
        [ "$now" = "$value" ] || state_put "$CONCERN" "$path" "$before" "$now"
        printf 'changed  %s: %s -> %s\n' "$path" "$before" "$now"
        return
    fi
    skip "$path: $reason"
    if [ -n "$recorded" ]; then
        state_put "$CONCERN" "$path" "$before" "$now"
    else
        state_drop "$path"
    fi
}

# Writes a value, or prints why that failed.
write_value() {
    local reason
    # The outer redirection captures the message of a failed inner one.
    if reason=$({ printf '%s\n' "$2" >"$ROOT$1"; } 2>&1); then return 0; fi
    printf '%s' "${reason##*: }"
    return 1
}
