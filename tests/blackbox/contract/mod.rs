//! The guarantees that hold for every store: each is one test, run once for each store.

mod appear;
mod completion;
pub mod cursors;
mod ending;
mod forging;
mod ingest;
pub mod many;
mod outage;
pub mod reading;
mod resume;
mod selecting;
pub mod set_faults;
mod set_torture;
mod set_trims;
pub mod sets;

use crate::support::store::Sqlite;
use crate::support::{Postgres, Redis};

/// Makes a module for each store, with a test for each of these functions in it.
macro_rules! contract {
    ($($store:ident: $type:ty => $list:ident;)*) => {
        $(mod $store {
            use super::*;
            $list!($type);
        })*
    };
}

macro_rules! tests {
    ($store:ty; $($module:ident::$test:ident)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                $module::$test::<$store>().await;
            }
        )*
    };
}

macro_rules! of_every_store {
    ($store:ty) => {
        tests! { $store;
            reading::history_comes_first_then_what_is_live_then_the_end
            reading::each_watched_job_gets_its_own_events_and_no_others
            reading::one_job_tells_its_status_its_newest_event_and_its_watchers
            reading::all_who_watch_a_job_see_one_order_whoever_writes
            reading::rows_that_others_write_arrive_without_waiting_for_the_poll
            reading::subscribers_that_the_ring_overtakes_are_fed_from_the_source_and_lose_nothing
            appear::a_stream_of_a_job_that_is_not_there_yet_opens_when_its_first_row_is_written
            appear::a_job_that_does_not_appear_is_none_after_the_wait_and_at_once_where_nobody_waits
            resume::resuming_from_every_cursor_gives_exactly_the_rest
            resume::resuming_from_every_cursor_after_kill_9_gives_exactly_the_rest
            resume::resuming_from_every_cursor_of_an_ended_job_gives_the_rest_and_its_end
            resume::a_cursor_from_one_replica_loses_and_repeats_nothing_on_another
            resume::from_now_gives_only_what_comes_and_a_drop_before_it_misses_nothing
            resume::pages_of_json_and_the_stream_honour_each_others_cursors
            resume::a_store_made_anew_is_said_and_read_from_its_beginning
            completion::a_jobs_last_event_comes_before_stream_complete_and_its_end_gets_a_204
            completion::a_job_that_ended_without_an_event_is_complete
            completion::a_job_that_is_run_again_goes_on_where_it_ended
            completion::a_job_that_ends_with_more_than_one_read_holds_gives_all_of_it_first
            ending::late_lines_reach_who_watches_and_who_comes_late_before_stream_complete
            ending::a_job_that_ended_long_ago_is_complete_at_once_whatever_the_grace
            ending::a_poll_is_complete_when_the_grace_is_over_and_not_before
            ending::the_status_comes_first_and_whenever_it_changes_on_both_ways_of_delivery
            ending::a_job_whose_status_is_taken_back_within_the_grace_has_not_ended
            many::positions_of_any_kind_lose_and_repeat_nothing_on_many_jobs
            cursors::junk_cursors_get_a_reset_or_a_400_and_never_a_wrong_answer
            cursors::a_cursor_has_at_most_128_bytes_that_no_browser_asks_leave_for
            forging::honest_readers_beside_50_that_forge_lose_and_repeat_nothing_and_are_never_reset
            sets::a_set_gives_the_events_of_each_job_once_and_in_order_and_closes_when_all_have_ended
            sets::resuming_a_set_at_every_event_on_another_replica_gives_exactly_the_rest
            sets::a_cursor_of_another_set_goes_on_for_the_jobs_that_it_knows
            sets::a_job_of_a_set_that_is_not_there_yet_comes_when_it_appears
            sets::a_job_of_a_set_that_goes_on_after_its_end_is_told_to_all_and_ends_once_more
            sets::streams_of_a_job_and_of_sets_with_it_begin_at_any_time_beside_each_other
            sets::types_and_last_give_what_a_filter_of_the_whole_history_gives
            selecting::any_types_and_beginning_and_cursor_give_what_a_filter_of_the_whole_history_gives
            set_trims::of_a_set_only_the_job_whose_history_was_trimmed_begins_anew_and_the_others_lose_nothing
            set_torture::subscribers_of_changing_sets_that_come_and_go_lose_nothing_repeat_nothing_and_keep_each_order
            ingest::an_event_is_answered_as_it_is_stored_and_a_repeated_id_is_stored_once
            ingest::events_that_are_sent_in_reach_the_subscribers_of_every_replica
            ingest::of_64_writers_at_once_on_two_daemons_each_event_is_acknowledged_and_received_once
        }
    };
}

macro_rules! of_every_server {
    ($store:ty) => {
        of_every_store!($store);
        tests! { $store;
            outage::a_server_that_dies_and_comes_back_is_told_once_and_loses_nothing
            outage::an_outage_is_one_warning_however_many_ask
            outage::a_long_poll_that_waits_when_the_server_dies_is_told_of_it
            appear::whoever_waits_for_a_job_when_the_server_dies_is_told_so_and_to_come_back
            outage::a_daemon_starts_without_its_server_and_comes_up_when_that_comes
        }
    };
}

contract! {
    sqlite: Sqlite => of_every_store;
    postgres: Postgres => of_every_server;
    redis: Redis => of_every_server;
}
