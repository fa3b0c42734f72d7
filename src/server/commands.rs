//! Commands for the whole node: queries every core, collects the replies, answers the client.

use std::net::SocketAddr;
use std::time::Duration;

use super::connection::Connection;
use super::core_message::{CoreMessage, CoreQuery, CoreReply, ItemsQuery};
use super::core_state::CoreState;
use super::listener::Listener;
use super::mesh::Mesh;
use super::net_ring::Token;
use super::stats_collector::{CoreReport, StatsRequest};
use super::{process, topology};
use crate::engine::PrefixCounters;
use crate::protocol::admin_command::{AdminAnswer, AdminCommand, Classes};
use crate::protocol::compact::encode_topology;
use crate::protocol::pipeline::Completion;
use crate::protocol::text::Dump;
use crate::protocol::{
    Output, Reply, ReplyForm, encode_admin, encode_stat, encode_stats_end, encode_stats_text,
};
use crate::request::Hit;
use crate::shard::{ReassignOutcome, ScanCursor};
use crate::stats::{
    ConnectionAddress, ConnectionState, ConnectionStats, CoreClusterStats, CoreStats, Snapshot,
    Topic,
};

/// Items that a core lists before it continues serving.
const ITEMS_AT_ONCE: u32 = 64;

/// A node command in progress.
pub struct PendingCommand {
    token: Token,
    sequence: u32,
    kind: Gather,
    /// Cores that have not replied yet.
    waiting: usize,
    collected: Collected,
}

/// How the replies of the cores are combined.
enum Gather {
    /// Answer with this once all have confirmed.
    Acknowledge(AdminAnswer),
    Stats(Topic),
    Prefixes,
    /// `cache_memlimit` with this many bytes.
    MemoryLimit(u64),
    Reassign,
    Crawl {
        classes: Vec<u8>,
    },
    /// The cores list their items one after the other.
    Dump {
        query: ItemsQuery,
        core: u32,
        left: u32,
    },
}

#[derive(Default)]
struct Collected {
    figures: Vec<(u32, CoreStats)>,
    connections: Vec<ConnectionStats>,
    prefixes: PrefixCounters,
    refused: bool,
    reassigned: Option<ReassignOutcome>,
}

/// What a command needs before it can be answered.
enum CommandPlan {
    /// Nothing: this is the answer.
    Answer(AdminAnswer),
    /// The topology, for HELLO.
    Topology,
    /// Every core's reply to each of these queries.
    Ask(Gather, &'static [fn() -> CoreQuery]),
    /// Every core's reply to this command.
    AskOne(Gather, CoreQuery),
    /// A list of items.
    List(ItemsQuery, u32),
    /// No answer: the connection closes and the node stops.
    Stop,
}

impl CoreState {
    /// Starts a node command of a connection whose pipeline is empty.
    pub(super) fn begin_command(
        &mut self,
        index: u32,
        command: AdminCommand<'_>,
        reply: &Reply<'_>,
        mesh: &mut Mesh,
    ) {
        let pipelined = self.connection_at(index).has_answers();
        let plan = match (self.plan(command), command) {
            (CommandPlan::List(..), AdminCommand::Dump { keys_only, .. }) if pipelined => {
                CommandPlan::Answer(AdminAnswer::DumpPipelined { keys_only })
            }
            (plan, _) => plan,
        };
        let connection = self.connection_at(index);
        let token = connection.token;
        let sequence = connection.session.pipeline.reserve(reply);
        match plan {
            CommandPlan::Answer(answer) => self.finish(token, sequence, &|reply, mut out| {
                encode_admin(reply, answer, &mut out);
            }),
            CommandPlan::Topology => self.answer_topology(token, sequence),
            CommandPlan::Stop => {
                connection.closing = true;
                self.finish(token, sequence, &|_, _| {});
                self.node.leave();
            }
            CommandPlan::Ask(kind, queries) => {
                let queries = queries.iter().map(|query| query());
                self.ask_all(token, sequence, kind, queries.collect(), mesh);
            }
            CommandPlan::AskOne(kind, query) => {
                self.ask_all(token, sequence, kind, vec![query], mesh);
            }
            CommandPlan::List(query, left) => {
                connection.awaiting_node = true;
                connection.out.bytes(query.dump.opening());
                let kind = Gather::Dump { query, core: 0, left };
                let command = PendingCommand {
                    token,
                    sequence,
                    kind,
                    waiting: 1,
                    collected: Collected::default(),
                };
                let number = self.pending_commands.insert(command) as u32;
                self.ask_for_items(number, mesh);
            }
        }
    }

    fn plan(&mut self, command: AdminCommand<'_>) -> CommandPlan {
        let permissions = self.node.config.permissions;
        match command {
            AdminCommand::Hello => CommandPlan::Topology,
            AdminCommand::Stats { argument } => match Topic::parse(argument) {
                None => CommandPlan::Answer(AdminAnswer::Unknown),
                Some(topic) => self.plan_stats(topic),
            },
            AdminCommand::FlushAll { .. } if !permissions.flush => {
                self.counters.cmd_flush += 1;
                CommandPlan::Answer(AdminAnswer::FlushNotAllowed)
            }
            AdminCommand::FlushAll { at } => {
                self.counters.cmd_flush += 1;
                self.node.set_flushed_at(at.max(self.now));
                CommandPlan::AskOne(Gather::Acknowledge(AdminAnswer::Done), CoreQuery::FlushAll(at))
            }
            AdminCommand::Verbosity(level) => {
                self.node.set_verbosity(level);
                CommandPlan::Answer(AdminAnswer::Done)
            }
            AdminCommand::MemoryLimit { mebibytes } => {
                let bytes = mebibytes.saturating_mul(1 << 20);
                let share = bytes / u64::from(self.core_count());
                CommandPlan::AskOne(Gather::MemoryLimit(bytes), CoreQuery::MemoryLimit(share))
            }
            AdminCommand::Shutdown { .. } if !permissions.shutdown => {
                CommandPlan::Answer(AdminAnswer::ShutdownNotEnabled)
            }
            AdminCommand::Shutdown { mode_is_known: false } => {
                CommandPlan::Answer(AdminAnswer::ShutdownModeUnknown)
            }
            AdminCommand::Shutdown { mode_is_known: true } => CommandPlan::Stop,
            AdminCommand::Dump { .. } if !self.node.knobs().crawler => {
                CommandPlan::Answer(AdminAnswer::CrawlerDisabled)
            }
            AdminCommand::Dump { keys_only, .. } if !permissions.dump => {
                CommandPlan::Answer(AdminAnswer::DumpNotAllowed { keys_only })
            }
            AdminCommand::Dump { keys_only, classes } => match Classes::parse(classes) {
                None => CommandPlan::Answer(AdminAnswer::BadClass),
                Some(classes) => {
                    let dump = if keys_only { Dump::Requests } else { Dump::Metadata };
                    CommandPlan::List(items(dump, classes), u32::MAX)
                }
            },
            AdminCommand::CacheDump { .. } if !permissions.dump => {
                CommandPlan::Answer(AdminAnswer::CacheDumpNotAllowed)
            }
            AdminCommand::CacheDump { class, limit } => {
                let limit = if limit == 0 { u32::MAX } else { limit };
                CommandPlan::List(items(Dump::Cache, Classes::only(class)), limit)
            }
            // There are no log lines per request, since their cost would be paid on every request.
            AdminCommand::Watch { .. } => CommandPlan::Answer(AdminAnswer::WatchNotAllowed),
            AdminCommand::ReassignPage { from, to } => {
                CommandPlan::AskOne(Gather::Reassign, CoreQuery::ReassignPage(from, to))
            }
            AdminCommand::Crawl { classes } => CommandPlan::Ask(
                Gather::Crawl { classes: classes.to_vec() },
                &[|| CoreQuery::Stats],
            ),
            AdminCommand::SetKnob(knob) => CommandPlan::Answer(self.node.knobs().apply(knob)),
        }
    }

    fn plan_stats(&mut self, topic: Topic) -> CommandPlan {
        let dump_allowed = self.node.config.permissions.dump;
        match topic {
            Topic::Reset => CommandPlan::Ask(
                Gather::Acknowledge(AdminAnswer::StatsReset),
                &[|| CoreQuery::ResetCounters],
            ),
            Topic::Detail(_) | Topic::DetailDump | Topic::DetailUsage if !dump_allowed => {
                CommandPlan::Answer(AdminAnswer::DetailNotAllowed)
            }
            Topic::DetailUsage => CommandPlan::Answer(AdminAnswer::DetailUsage),
            Topic::Detail(on) => {
                self.node.knobs().detail = on;
                CommandPlan::AskOne(
                    Gather::Acknowledge(AdminAnswer::Done),
                    CoreQuery::CountPrefixes(on),
                )
            }
            Topic::DetailDump => CommandPlan::Ask(Gather::Prefixes, &[|| CoreQuery::Prefixes]),
            Topic::Connections => CommandPlan::Ask(
                Gather::Stats(topic),
                &[|| CoreQuery::Stats, || CoreQuery::Connections],
            ),
            _ => CommandPlan::Ask(Gather::Stats(topic), &[|| CoreQuery::Stats]),
        }
    }

    fn core_count(&self) -> u32 {
        self.engine.config().core_count
    }

    fn ask_all(
        &mut self,
        token: Token,
        sequence: u32,
        kind: Gather,
        queries: Vec<CoreQuery>,
        mesh: &mut Mesh,
    ) {
        let cores = self.core_count();
        self.connection_at(token.index).awaiting_node = true;
        let waiting = cores as usize * queries.len();
        let collected = Collected::default();
        let command = PendingCommand { token, sequence, kind, waiting, collected };
        let number = self.pending_commands.insert(command) as u32;
        let here = self.engine.config().core;
        for query in queries {
            for core in (0..cores).filter(|&core| core != here) {
                mesh.control(core, CoreMessage::Query(number, query.clone()));
            }
            let reply = self.answer_query(query);
            self.on_reply(here, number, reply, mesh);
        }
    }

    /// Answers a command about this core.
    pub(super) fn answer_query(&mut self, query: CoreQuery) -> CoreReply {
        match query {
            CoreQuery::Stats => CoreReply::Stats(Box::new(self.figures())),
            CoreQuery::Connections => CoreReply::Connections(self.list_connections()),
            CoreQuery::Prefixes => CoreReply::Prefixes(Box::new(
                self.engine.finishing.prefixes.clone().unwrap_or_default(),
            )),
            CoreQuery::CountPrefixes(on) => {
                // What has been counted remains visible.
                self.engine.finishing.prefixes.get_or_insert_default().switch(on);
                CoreReply::Done
            }
            CoreQuery::ResetCounters => {
                self.engine.shard.reset_counters();
                self.poll_policy.longest_turn = Duration::ZERO;
                if let Some(prefixes) = &mut self.engine.finishing.prefixes {
                    prefixes.clear();
                }
                self.counters = Default::default();
                CoreReply::Done
            }
            CoreQuery::FlushAll(at) => {
                if self.engine.coordinator().is_none() {
                    self.engine.shard.flush_all(at, self.now);
                } else {
                    self.engine.flush_everywhere_at(at, self.now);
                }
                CoreReply::Done
            }
            CoreQuery::MemoryLimit(bytes) => {
                CoreReply::MemoryLimit(self.engine.shard.set_memory_limit(bytes))
            }
            CoreQuery::ReassignPage(from, to) => {
                CoreReply::Reassigned(self.engine.shard.reassign_page(from, to))
            }
            CoreQuery::Items(ItemsQuery { dump, classes, mut cursor, limit }) => {
                let (mut lines, mut count) = (Vec::new(), 0);
                let now = self.now;
                let visit = |hit: &Hit<'_>| {
                    if classes.include(hit.class) && !hit.deadline.is_past(now) {
                        dump.item(hit, now, &mut lines);
                        count += 1;
                    }
                };
                let more = self.engine.shard.scan(&mut cursor, limit, now, visit);
                CoreReply::Items { lines, count, next: more.then_some(cursor) }
            }
        }
    }

    /// Handles core `from`'s reply to command `number`.
    pub(super) fn on_reply(&mut self, from: u32, number: u32, reply: CoreReply, mesh: &mut Mesh) {
        let command =
            self.pending_commands.get_mut(number as usize).expect("asked under this number");
        let collected = &mut command.collected;
        match reply {
            CoreReply::Done => {}
            CoreReply::Stats(figures) => collected.figures.push((from, *figures)),
            CoreReply::Connections(connections) => collected.connections.extend(connections),
            CoreReply::Prefixes(prefixes) => collected.prefixes.add(&prefixes),
            CoreReply::MemoryLimit(possible) => collected.refused |= !possible,
            CoreReply::Reassigned(outcome) => {
                // One core that moves a page suffices; otherwise the first refusal is reported.
                if outcome == ReassignOutcome::Started || collected.reassigned.is_none() {
                    collected.reassigned = Some(outcome);
                }
            }
            CoreReply::Items { lines, count, next } => {
                return self.listed(number, &lines, count, next, mesh);
            }
        }
        command.waiting -= 1;
        if command.waiting == 0 {
            let command = self.pending_commands.remove(number as usize);
            self.complete_command(command);
        }
    }

    fn complete_command(&mut self, command: PendingCommand) {
        let PendingCommand { token, sequence, kind, collected, .. } = command;
        let Collected { mut figures, connections, prefixes, refused, reassigned } = collected;
        figures.sort_by_key(|(core, _)| *core);
        let cores: Vec<CoreStats> = figures.into_iter().map(|(_, figures)| figures).collect();
        let answer = match kind {
            Gather::Acknowledge(answer) => answer,
            Gather::MemoryLimit(_) if refused => AdminAnswer::MemoryLimitUnreachable,
            Gather::MemoryLimit(bytes) => {
                self.node.knobs().memory_bytes = Some(bytes);
                AdminAnswer::Done
            }
            Gather::Reassign => match reassigned {
                Some(ReassignOutcome::Started) => AdminAnswer::Done,
                Some(ReassignOutcome::BadClass) => AdminAnswer::ReassignBadClass,
                Some(ReassignOutcome::Busy) => AdminAnswer::ReassignBusy,
                Some(ReassignOutcome::Same) => AdminAnswer::ReassignSame,
                Some(ReassignOutcome::NoSpare) | None => AdminAnswer::ReassignNoSpare,
            },
            Gather::Crawl { classes } => {
                let items = cores.iter().map(|core| core.gauges.items).sum();
                self.node.knobs().crawl(&classes, items)
            }
            Gather::Prefixes => {
                let dump = prefixes.dump();
                let write = |reply: &Reply<'_>, mut out: &mut dyn Output| {
                    encode_stats_text(reply, &dump, &mut out);
                };
                return self.finish(token, sequence, &write);
            }
            Gather::Stats(topic) => {
                return self.answer_stats(token, sequence, topic, &cores, &connections);
            }
            Gather::Dump { .. } => unreachable!("a dump ends with its last core"),
        };
        self.finish(token, sequence, &|reply, mut out| encode_admin(reply, answer, &mut out));
    }

    fn answer_stats(
        &mut self,
        token: Token,
        sequence: u32,
        topic: Topic,
        cores: &[CoreStats],
        connections: &[ConnectionStats],
    ) {
        let node = self.node.clone();
        let knobs = *node.knobs();
        let members = node.members();
        let snapshot = Snapshot {
            cluster: members.as_deref(),
            now: self.now,
            process: &process::stats(node.clock.uptime()),
            config: &node.config,
            knobs: &knobs,
            verbosity: node.verbosity(),
            flushed_at: node.flushed_at(),
            cores,
            connections,
        };
        self.finish(token, sequence, &|reply, mut out| {
            crate::stats::render(topic, &snapshot, &mut |name, value| {
                let (name, value) = (name.to_string(), value.to_string());
                encode_stat(reply, name.as_bytes(), value.as_bytes(), &mut out);
            });
            encode_stats_end(reply, &mut out);
        });
    }

    fn answer_topology(&mut self, token: Token, sequence: u32) {
        let node = self.node.clone();
        let (core, hash_seed) = (self.engine.config().core as u16, self.engine.config().hash_seed);
        topology::tell(&node, core, hash_seed, |topology| {
            self.finish(token, sequence, &|reply, mut out| {
                if let ReplyForm::Compact(form) = reply.form {
                    encode_topology(form, topology, &mut out);
                }
            });
        });
    }

    /// Writes the answer of a node command and resumes the connection.
    fn finish(&mut self, token: Token, sequence: u32, write: &dyn Fn(&Reply<'_>, &mut dyn Output)) {
        let now = self.now;
        let Some(connection) = self.connection(token) else { return };
        let Connection { session, out, .. } = connection;
        session.pipeline.complete(sequence, Completion::Custom(write), now, out);
        if connection.awaiting_node {
            connection.awaiting_node = false;
            // Its later input is processed in this turn, like that of other stalled connections.
            connection.held_back = true;
            self.list(token.index);
        }
        self.mark_dirty(token.index);
    }

    /// Requests the next items of a dump from the current core.
    pub(super) fn ask_for_items(&mut self, number: u32, mesh: &mut Mesh) {
        let command = self.pending_commands.get(number as usize).expect("a dump under way");
        let Gather::Dump { query, core, left } = &command.kind else {
            unreachable!("only dumps ask for items");
        };
        let query = ItemsQuery { limit: ITEMS_AT_ONCE.min(*left), ..query.clone() };
        let core = *core;
        mesh.control_or_here(core, CoreMessage::Query(number, CoreQuery::Items(query)));
    }

    /// Handles some lines of a dump; requests more, or waits until the client has read some.
    fn listed(
        &mut self,
        number: u32,
        lines: &[u8],
        count: u32,
        next: Option<ScanCursor>,
        mesh: &mut Mesh,
    ) {
        let cores = self.core_count();
        let command = self.pending_commands.get_mut(number as usize).expect("a dump under way");
        let (token, sequence) = (command.token, command.sequence);
        let Gather::Dump { query, core, left } = &mut command.kind else {
            unreachable!("only dumps list items");
        };
        *left -= count.min(*left);
        match next {
            Some(cursor) => query.cursor = cursor,
            None => {
                *core += 1;
                query.cursor = ScanCursor::default();
            }
        }
        let done = *core == cores || *left == 0;
        let closing = query.dump.closing();
        let Some(connection) = self.connection(token) else {
            self.pending_commands.remove(number as usize);
            return;
        };
        connection.out.bytes(lines);
        self.mark_dirty(token.index);
        if done {
            self.pending_commands.remove(number as usize);
            self.finish(token, sequence, &|_, out| out.bytes(closing));
        } else if self.connection_at(token.index).is_output_full() {
            self.dumps_waiting.push(number);
        } else {
            self.ask_for_items(number, mesh);
        }
    }

    /// Resumes dumps whose clients have read enough.
    pub(super) fn resume_dumps(&mut self, mesh: &mut Mesh) {
        for number in std::mem::take(&mut self.dumps_waiting) {
            let token = self.pending_commands[number as usize].token;
            match self.connection(token) {
                None => drop(self.pending_commands.remove(number as usize)),
                Some(connection) if connection.is_output_full() => self.dumps_waiting.push(number),
                Some(_) => self.ask_for_items(number, mesh),
            }
        }
    }

    /// Answers a statistics request from outside the mesh.
    pub(super) fn publish_stats(&self, request: StatsRequest) {
        let connections = match request {
            StatsRequest::Totals => Vec::new(),
            StatsRequest::Connections => self.list_connections(),
        };
        let here = self.engine.config().core as usize;
        self.node.cores[here]
            .stats_slot
            .publish(CoreReport { figures: self.figures(), connections });
    }

    fn figures(&self) -> CoreStats {
        let shard = &self.engine.shard;
        let queues = &self.node.config.queues;
        let traffic = self.engine.traffic;
        let busy = self.poll_policy.busy();
        let (connection_bytes, connection_bytes_peak) = self.memory.figures();
        let buffer_bytes =
            u64::from(queues.receive_buffers) * u64::from(queues.receive_buffer_bytes);
        CoreStats {
            counters: shard.counters().clone(),
            connections: self.counters.clone(),
            gauges: shard.gauges(),
            classes: shard.class_stats(self.now),
            curr_connections: u64::from(self.open),
            connection_bytes: connection_bytes as u64,
            connection_bytes_peak: connection_bytes_peak as u64,
            receive_buffers: u64::from(queues.receive_buffers),
            receive_buffer_bytes: buffer_bytes,
            receive_buffer_bytes_free: buffer_bytes,
            local_requests: traffic.local,
            forwarded_requests: traffic.forwarded,
            served_requests: traffic.served,
            busy,
            longest_turn: self.poll_policy.longest_turn,
            stale_completions: self.stale_completions,
            idle: self.node.clock.uptime().saturating_sub(busy),
            cluster: self.cluster_figures(),
        }
    }

    fn cluster_figures(&self) -> Option<Box<CoreClusterStats>> {
        let coordinator = self.engine.coordinator()?;
        let (hint_counters, hints, hint_bytes) = coordinator.hints();
        Some(Box::new(CoreClusterStats {
            counters: coordinator.counters(),
            hint_counters,
            hints: hints as u64,
            hint_bytes: hint_bytes as u64,
            operations: coordinator.operations() as u64,
            operation_bytes: coordinator.operation_bytes() as u64,
            link_bytes: self.link_bytes as u64,
            link_counters: self.link_counters,
            breaker_counters: coordinator.breaker_counters(),
            arriving: coordinator.transfer_progress().0,
            hot_keys: coordinator.hot_keys(),
            breakers: coordinator.breakers(self.now),
        }))
    }

    fn list_connections(&self) -> Vec<ConnectionStats> {
        let idle = |connection: &Connection| self.now.since(connection.last_active);
        self.connections
            .iter()
            .filter_map(|slot| slot.connection.as_deref())
            .map(|connection| ConnectionStats {
                id: connection.fd() as u64,
                address: address(socket2::SockRef::from(connection.socket()).peer_addr()),
                listen_address: Some(address(
                    socket2::SockRef::from(connection.socket()).local_addr(),
                )),
                state: if connection.awaiting_node {
                    ConnectionState::Parsing
                } else if connection.streaming.is_some() || waits_behind_a_line(connection) {
                    // Input after a whole line waits for the rest of its data.
                    ConnectionState::ReceivingValue
                } else if connection.sending {
                    ConnectionState::Sending
                } else {
                    ConnectionState::Read
                },
                idle_seconds: idle(connection).as_secs(),
            })
            .chain(self.listening.iter().cloned())
            .collect()
    }
}

/// A core's listeners as shown by `stats conns`.
pub(super) fn listening(listeners: &[Listener]) -> Vec<ConnectionStats> {
    listeners
        .iter()
        .map(|listener| ConnectionStats {
            id: listener.fd() as u64,
            address: address(listener.address()),
            listen_address: None,
            state: ConnectionState::Listening,
            idle_seconds: Duration::ZERO.as_secs(),
        })
        .collect()
}

fn address(address: std::io::Result<socket2::SockAddr>) -> ConnectionAddress {
    match address {
        Ok(address) => match (address.as_socket(), address.as_pathname()) {
            (Some(address), _) => ConnectionAddress::Tcp(address),
            (None, path) => {
                ConnectionAddress::Unix(path.unwrap_or("unnamed".as_ref()).to_path_buf())
            }
        },
        Err(_) => ConnectionAddress::Tcp(SocketAddr::from(([0, 0, 0, 0], 0))),
    }
}

/// Whether the waiting input begins with a whole line, as far as it is inspected.
fn waits_behind_a_line(connection: &Connection) -> bool {
    const LOOKED_AT_BYTES: usize = 4096;
    let pending = connection.pending.bytes();
    pending[..pending.len().min(LOOKED_AT_BYTES)].contains(&b'\n')
}

fn items(dump: Dump, classes: Classes) -> ItemsQuery {
    ItemsQuery { dump, classes, cursor: ScanCursor::default(), limit: 0 }
}
