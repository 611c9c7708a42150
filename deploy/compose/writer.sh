#!/bin/sh
# Plays a runner: writes jobs with steps and lines of output into PostgreSQL, one after the other, for ever.
# WRITER_JOBS bounds their number, WRITER_PAUSE is the time between two events (seconds).
set -eu
pause=${WRITER_PAUSE:-0.3}
jobs=${WRITER_JOBS:-0}
number=0

sql() {
    psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 "$@" > /dev/null
}

# event JOB STEP TYPE PAYLOAD
event() {
    echo "INSERT INTO job_events (job_id, step_id, type, actor, payload) VALUES (:'job', :'step', :'type', 'writer', :'payload');" |
        sql --set job="$1" --set step="$2" --set type="$3" --set payload="$4"
    sleep "$pause"
}

# status JOB STATUS
status() {
    echo "INSERT INTO runner_jobs (id, status) VALUES (:'job', :'status')
          ON CONFLICT (id) DO UPDATE SET status = excluded.status, updated_at = now();" |
        sql --set job="$1" --set status="$2"
}

while [ "$jobs" = 0 ] || [ "$number" -lt "$jobs" ]; do
    number=$((number + 1))
    job=build-$(date +%H%M%S)-$number
    status "$job" RUNNING
    for step in checkout compile test deploy; do
        event "$job" "$step" step.started "{\"name\":\"$step\"}"
        for line in 1 2 3 4 5; do
            event "$job" "$step" step.output "{\"line\":\"$step: line $line of 5\"}"
        done
        event "$job" "$step" step.completed "{\"name\":\"$step\"}"
    done
    # Every fifth fails.
    if [ $((number % 5)) = 0 ]; then status "$job" FAILED; else status "$job" COMPLETED; fi
done
