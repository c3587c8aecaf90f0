#!/bin/sh
# keeper.sh COMMAND [ARGUMENT]...: starts the first process of a new pid namespace and ends as it
# does, with 128 + n for signal n. Ends it when told to (TERM), which the server's end does too.
child='' ended=''
trap 'ended=yes; [ -z "$child" ] || kill -9 "$child"' TERM
# This holds until the container takes on another user.
setpriv --pdeathsig KILL "$@" &
child=$!
[ -z "$ended" ] || kill -9 "$child"
wait "$child"
code=$?
# A signal to this shell ends the waiting before the child.
while kill -0 "$child" 2> /dev/null; do
    wait "$child"
    code=$?
done
exit "$code"
