# shellcheck shell=bash
# How many files a process may open and how much memory it may lock. The host's ceilings can be
# raised here; a process gets its own limits from its unit, container or shell.

# Open files: the kernel's own default ceiling for one process.
FILES=1048576
# Locked memory in KiB that a node requires at startup.
LOCKED_KIB=512

title "open files and locked memory"

# A limit of a process: NAME as in /proc/PID/limits, the soft one.
limit_of() { NAME=$2 awk 'index($0, ENVIRON["NAME"]) == 1 { print $(split(ENVIRON["NAME"], words, " ") + 1) }' "$ROOT/proc/$1/limits" 2>/dev/null; }

# show PID WHO
show() {
    local files locked
    files=$(limit_of "$1" "Max open files")
    locked=$(limit_of "$1" "Max locked memory")
    if [ -z "$files$locked" ]; then
        skip "limits of $2: cannot be read here"
        return
    fi
    found "$2: ${files:-unknown} open files, ${locked:-unknown} bytes of locked memory"
    if [[ $locked =~ ^[0-9]+$ ]] && [ "$locked" -lt $((LOCKED_KIB * 1024)) ]; then
        advise "$2 may lock less than the $LOCKED_KIB KiB that io_uring needs: LimitMEMLOCK= in the unit, --ulimit memlock= of a container, or ulimit -l"
    fi
    if [[ $files =~ ^[0-9]+$ ]] && [ "$files" -lt 10240 ]; then
        advise "$2 may open too few files for the default of 10000 connections: LimitNOFILE= in the unit, --ulimit nofile= of a container, or ulimit -n"
    fi
}

because "every connection is an open file; beyond the ceiling a unit cannot raise its limit" \
    "as many connections as --max-connections allows"
want_at_least /proc/sys/fs/nr_open $FILES
want_at_least /proc/sys/fs/file-max $FILES
show self "this shell"
for pid in $(processes ringlane); do show "$pid" "ringlane (process $pid)"; done
