# shellcheck shell=bash
# Whether the node may use io_uring. An administrator who has switched it off had a reason: it is
# switched on again only for the group that is named with --uring-group.

title "permission to use io_uring"

RELEASE=$(value_of /proc/sys/kernel/osrelease)
if [[ $RELEASE =~ ^([0-9]+)\.([0-9]+) ]]; then
    if [ "${BASH_REMATCH[1]}" -lt 6 ] || [ "${BASH_REMATCH[1]}.${BASH_REMATCH[2]}" = 6.0 ]; then
        advise "kernel $RELEASE is too old: Ringlane needs 6.1 or newer"
    else
        found "kernel $RELEASE"
    fi
fi

# The number of a group that is given by name or number.
group_number() {
    if [[ $1 =~ ^[0-9]+$ ]]; then
        printf '%s' "$1"
    else
        NAME=$1 awk -F: '$1 == ENVIRON["NAME"] { print $3; exit }' "$ROOT/etc/group" 2>/dev/null
    fi
}

DISABLED=/proc/sys/kernel/io_uring_disabled
ALLOWED=/proc/sys/kernel/io_uring_group
why="without io_uring the node does not start"
if ! now=$(value_of $DISABLED); then
    found "this kernel has no switch for io_uring (it came with 6.6): nothing forbids it"
elif [ "$now" = 0 ]; then
    found "io_uring is allowed to all"
elif [ "$OPT_URING_GROUP" = all ]; then
    because "$why; asked for with --uring-group all" "every program on this host may use it"
    want $DISABLED 0
elif [ -n "$OPT_URING_GROUP" ]; then
    group=$(group_number "$OPT_URING_GROUP")
    if [ -z "$group" ]; then
        skip "there is no group $OPT_URING_GROUP: groupadd --system $OPT_URING_GROUP"
    else
        because "$why; asked for with --uring-group" "members of group $group may use it, others still not"
        # The group first: between the two writes nobody gains anything by accident.
        want $ALLOWED "$group"
        want $DISABLED 1
    fi
else
    [ "$now" = 2 ] && who="to nobody" || who="to the privileged and to group $(value_of $ALLOWED)"
    found "io_uring is allowed only $who (kernel.io_uring_disabled = $now)"
    advise "$why: --uring-group GROUP allows it to one group (SupplementaryGroups= in the unit), --uring-group all to everybody"
fi
