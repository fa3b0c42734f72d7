//! Nodes as real processes on loopback addresses, driven by clients that remember every answer:
//! what a cluster does from day to day, and when nodes die, hang, leave and come.

#[path = "cluster/compact.rs"]
mod compact;
#[path = "cluster/counters.rs"]
mod counters;
#[path = "cluster/delays.rs"]
mod delays;
#[path = "cluster/everyday.rs"]
mod everyday;
#[path = "cluster/failures.rs"]
mod failures;
mod live;
#[path = "cluster/load.rs"]
mod load;
#[path = "cluster/long_values.rs"]
mod long_values;
#[path = "cluster/membership.rs"]
mod membership;
#[path = "cluster/nodes.rs"]
mod nodes;
#[path = "cluster/relay.rs"]
mod relay;
#[path = "cluster/topology.rs"]
mod topology;

/// Three copies, two of which take part in every request.
const THREE_COPIES: [&str; 6] = ["--replicas", "3", "--write-quorum", "2", "--read-quorum", "2"];
