//! One thread of load: a loop over issuing, sending, waiting and reading.
//!
//! ```text
//! now -> issue what is due -> one send per connection -> wait -> now -> read what came -> ...
//! ```
//!
//! The clock is read twice per turn, before requests are written and after completions are
//! collected, and everything in a turn shares these times.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::connections::{BACKOFF_FIRST, Connections, State};
use crate::errors::{Fault, Faults};
use crate::net::{Net, PollWait};
use crate::phase_state::{Note, SecondCounts, Shared, ThreadResult};
use crate::plan::Plan;
use crate::process::CpuTime;

/// Interval between checks for overdue answers.
const CHECK_NS: u64 = 100_000_000;

/// Runs one thread of a phase.
pub fn run(shared: &Shared, thread: usize, notes: &Sender<Note>) -> io::Result<ThreadResult> {
    core_affinity::set_for_current(core_affinity::CoreId { id: shared.plan.cpus[thread] });
    let connected = connect(shared, thread);
    let _ = notes.send(match &connected {
        Ok((connections, _)) => {
            Note::Ready(connections.count(|state| state == State::Open), connections.faults.clone())
        }
        Err(_) => Note::Ready(0, Faults::default()),
    });
    // Passed in any case, since the other threads wait here too.
    shared.gate.wait();
    let (connections, mut net) = connected?;
    load(shared, connections, &mut net, thread, notes)
}

/// Opens all connections, with one attempt each.
fn connect(shared: &Shared, thread: usize) -> io::Result<(Connections<'_>, Net)> {
    let (connections, threads) = (shared.plan.connections, shared.plan.cpus.len());
    let count = connections * (thread + 1) / threads - connections * thread / threads;
    let long_values = shared.workload.values.sizes().max() >= 64 << 10;
    let (buffers, buffer_bytes) = if long_values { (64, 256 << 10) } else { (128, 16 << 10) };
    let mut net = Net::new(count, buffers, buffer_bytes)?;
    let mut connections = Connections::new(shared, thread, count);
    connections.reconnect(&mut net, shared.now_ns());
    let under_way = |state| matches!(state, State::Connecting | State::Closing { .. });
    while connections.count(under_way) > 0 {
        net.wait(PollWait::AtMost(Duration::from_millis(100)))?;
        connections.events(&mut net, shared.now_ns());
    }
    Ok((connections, net))
}

fn load(
    shared: &Shared,
    mut connections: Connections<'_>,
    net: &mut Net,
    thread: usize,
    notes: &Sender<Note>,
) -> io::Result<ThreadResult> {
    let plan = &shared.plan;
    let start_ns = shared.start_ns.load(Ordering::Acquire);
    let begin_ns = start_ns + plan.warmup.as_nanos() as u64;
    let end_ns = plan.window.map_or(u64::MAX, |window| begin_ns + window.as_nanos() as u64);
    (connections.start_ns, connections.window_ns) = (start_ns, begin_ns..end_ns);
    let server_pids = if thread == 0 { &plan.server_pids[..] } else { &[] };
    let meter = || -> io::Result<_> {
        let servers = server_pids.iter().map(|&pid| CpuTime::of_process(pid));
        let server = CpuTime::sum(servers.collect::<Result<Vec<_>, _>>().unwrap_or_default());
        let waited_ns = CpuTime::this_thread_waited_ns();
        Ok((shared.now_ns(), CpuTime::of_this_thread()?, waited_ns, server))
    };
    let (mut began, mut ended, mut given_up_ns) = (None, None, u64::MAX);
    let (mut second, mut idle_ns, mut check_ns) = (1, 0, start_ns + CHECK_NS);
    loop {
        let now_ns = shared.now_ns();
        let second_ns = begin_ns + second * 1_000_000_000;
        if began.is_none() && now_ns >= begin_ns {
            began = Some(meter()?);
        }
        if ended.is_none() && (now_ns >= end_ns || connections.is_done()) {
            // Requests that fell due since the last turn still belong to the window.
            if connections.schedule.is_some() {
                connections.issue(now_ns);
            }
            ended = Some(meter()?);
            given_up_ns = now_ns + plan.timeout.as_nanos() as u64;
        }
        // The last second is reported after its late answers.
        if now_ns >= second_ns && second_ns < end_ns {
            let _ = notes.send(Note::Second(tell(&mut connections, second)));
            second += 1;
        }
        if now_ns >= check_ns {
            check_ns = now_ns + CHECK_NS;
            connections.check_timeouts(now_ns);
        }
        let stopped = shared.stop.load(Ordering::Relaxed);
        if stopped || (ended.is_some() && (connections.waiting == 0 || now_ns > given_up_ns)) {
            break;
        }
        if ended.is_none() {
            if connections.any_down() {
                connections.reconnect(net, now_ns);
            }
            if now_ns >= start_ns {
                connections.issue(now_ns);
            }
        }
        connections.flush(net);
        let boundaries = [start_ns, begin_ns, end_ns, second_ns, check_ns];
        net.wait(patience(&connections, plan, now_ns, ended.is_some(), &boundaries))?;
        let something = connections.events(net, shared.now_ns());
        if plan.spin && !something && connections.window_ns.contains(&now_ns) {
            idle_ns += shared.now_ns() - now_ns;
        }
    }
    let _ = notes.send(Note::Second(tell(&mut connections, second)));
    let late = connections.waiting as u64;
    connections.faults.count(Fault::TimedOut, late, || {
        format!("no answer from {} within {:?} after the end", plan.address, plan.timeout)
    });
    let (began_ns, cpu_before, waited_before, server_before) = began.map_or_else(meter, Ok)?;
    let (ended_ns, cpu_after, waited_after, server_after) = ended.map_or_else(meter, Ok)?;
    let server_cpu = match (server_before, server_after) {
        (Some(before), Some(after)) => Some(after.since(&before)),
        _ => None,
    };
    let window_ns = ended_ns - began_ns;
    let cpu = cpu_after.since(&cpu_before);
    // A polling thread uses its CPU all the time; empty turns count as sleep.
    let worked_ns = if plan.spin { window_ns.saturating_sub(idle_ns) as f64 } else { cpu.total_ns };
    Ok(ThreadResult {
        unsent: connections.unsent(),
        gone: connections.are_gone(),
        recorder: connections.recorder,
        totals: connections.totals,
        faults: connections.faults,
        window_ns,
        cpu,
        busy: worked_ns / window_ns.max(1) as f64,
        waited: (waited_after - waited_before) as f64 / window_ns.max(1) as f64,
        server_cpu,
    })
}

fn tell(connections: &mut Connections<'_>, number: u64) -> SecondCounts {
    SecondCounts {
        number,
        latency: connections.recorder.take_interval(),
        totals: connections.totals,
        faults: connections.faults.clone(),
    }
}

/// When to wake up: the next second boundary, the next due request, or the next attempt to connect.
fn patience(
    connections: &Connections<'_>,
    plan: &Plan,
    now_ns: u64,
    ended: bool,
    boundaries: &[u64],
) -> PollWait {
    if plan.spin {
        return PollWait::None;
    }
    let next = boundaries.iter().copied().filter(|&boundary_ns| boundary_ns > now_ns).min();
    let mut until_ns = next.unwrap_or(now_ns + CHECK_NS);
    if let (Some(due_ns), false) = (connections.next_due_ns(), ended) {
        until_ns = until_ns.min(due_ns);
    }
    if connections.any_down() {
        until_ns = until_ns.min(now_ns + BACKOFF_FIRST.as_nanos() as u64);
    }
    PollWait::AtMost(Duration::from_nanos(until_ns.saturating_sub(now_ns)))
}
