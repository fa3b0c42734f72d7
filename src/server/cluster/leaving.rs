//! Leaving: the node gives up its ranges, others copy its items, and it reports their progress.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::driver::ClusterDriver;
use crate::cluster::governor::GovernorEvent;
use crate::config::ClusterConfig;
use crate::server::stats_collector::StatsRequest;
use crate::shard::Gauges;

/// Interval between checks whether everything has been copied.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Interval between progress counts.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Interval between progress log lines.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What the cores hold and have handed to other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Holdings {
    items: u64,
    item_bytes: u64,
    handed_records: u64,
    handed_bytes: u64,
}

/// Leaves the roster, waits at most `--leave-timeout` for other nodes to copy this node's items,
/// says goodbye and stops the node.
pub async fn leave(driver: Rc<ClusterDriver>) {
    let config = driver.node.config.cluster.as_ref().expect("a leaving node is in a cluster");
    let limit = config.leave_timeout;
    let before = holdings(&driver).await.unwrap_or_default();
    log::info!("leaving the cluster: other nodes have {limit:?} to copy this node's items");
    let begun = Instant::now();
    driver.event(GovernorEvent::Leave);
    let (mut now, mut count_at, mut tell_at) = (before, COUNT_EVERY, TELL_EVERY);
    while !driver.handed_over.get() && begun.elapsed() < limit && !driver.node.is_hurried() {
        glommio::timer::sleep(POLL_INTERVAL.min(limit)).await;
        if begun.elapsed() >= count_at {
            count_at = begun.elapsed() + COUNT_EVERY;
            now = holdings(&driver).await.unwrap_or(now);
        }
        if begun.elapsed() >= tell_at {
            tell_at += TELL_EVERY;
            log::info!("leaving: {}", copied(before, now));
        }
    }
    now = holdings(&driver).await.unwrap_or(now);
    let (warning, text) = account(config, driver.handed_over.get(), before, now);
    let level = if warning { log::Level::Warn } else { log::Level::Info };
    log::log!(level, "{text}, after {:.1} s", begun.elapsed().as_secs_f64());
    driver.event(GovernorEvent::Shutdown);
    driver.node.stop();
}

/// What the cores hold; `None` if they are about to stop, or one of them does not answer.
async fn holdings(driver: &ClusterDriver) -> Option<Holdings> {
    if driver.node.is_stopping() {
        return None;
    }
    let told = driver.stats_collector.collect(StatsRequest::Totals).await.ok()?;
    Some(told.iter().fold(Holdings::default(), |sum, told| {
        let Gauges { items, item_bytes, .. } = told.figures.gauges;
        let counters = told.figures.cluster.as_deref().map(|cluster| cluster.counters);
        let counters = counters.unwrap_or_default();
        Holdings {
            items: sum.items + items,
            item_bytes: sum.item_bytes + item_bytes,
            handed_records: sum.handed_records + counters.handed_records,
            handed_bytes: sum.handed_bytes + counters.handed_bytes,
        }
    }))
}

fn copied(before: Holdings, now: Holdings) -> String {
    let records = now.handed_records - before.handed_records;
    let bytes = now.handed_bytes - before.handed_bytes;
    format!("other nodes copied {records} items, {}", mebibytes(bytes))
}

/// A summary of what became of this node's items, and whether some were lost. With more than one
/// replica none are; which of the others has copied a key cannot be known here.
fn account(
    config: &ClusterConfig,
    complete: bool,
    before: Holdings,
    now: Holdings,
) -> (bool, String) {
    let text = copied(before, now);
    if complete {
        return (false, format!("{text}: everything they needed"));
    }
    if config.replication.replicas() > 1 {
        return (false, format!("{text} and keep copying from each other"));
    }
    let left = now.items.saturating_sub(now.handed_records - before.handed_records);
    let bytes = now.item_bytes.checked_div(now.items).unwrap_or(0) * left;
    let text =
        format!("{text}; about {left} items, {}, are lost (see --leave-timeout)", mebibytes(bytes));
    (left > 0, text)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::quorum::Replication;

    #[test]
    fn only_what_has_no_other_copy_and_was_not_taken_counts_as_lost() {
        let address = ([127, 0, 0, 1], 7000).into();
        let alone = ClusterConfig::new(address);
        let replication = Replication::new(3, 2, 2).expect("valid");
        let three = ClusterConfig { replication, ..ClusterConfig::new(address) };
        let before =
            Holdings { items: 1000, item_bytes: 8 << 20, handed_records: 50, handed_bytes: 4096 };
        let now = Holdings { handed_records: 800, handed_bytes: 4096 + (6 << 20), ..before };
        assert_eq!(
            account(&alone, true, before, now),
            (false, "other nodes copied 750 items, 6.0 MiB: everything they needed".into())
        );
        let (warning, text) = account(&alone, false, before, now);
        assert!(warning && text.contains("about 250 items, ") && text.contains("--leave-timeout"));
        let (warning, text) = account(&three, false, before, now);
        assert!(!warning && !text.contains("lost"), "{text}");
    }
}
