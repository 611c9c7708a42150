//! Recipes in a Cluster, where the keys of one job are on several servers.

use super::expiry::{WITHOUT_A_KEY, is_over_for_who_had_everything};
use super::{bullmq, llm_answer, lobehub};
use crate::support::{Cluster, alone};

#[tokio::test]
async fn operations_jobs_of_a_queue_and_answers_in_a_cluster_are_told_to_their_end_and_after_it() {
    let _alone = alone();
    let cluster = Cluster::start().await;
    lobehub::operations_are_told(&cluster).await;
    bullmq::jobs_are_told(&cluster).await;
    llm_answer::answers_are_told(&cluster).await;
    for shape in WITHOUT_A_KEY {
        is_over_for_who_had_everything(&cluster, shape).await;
    }
}
