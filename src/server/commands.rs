//! Commands for the whole node: queries every core, collects the replies, answers the client.

use std::net::SocketAddr;
use std::time::Duration;

use super::connection::Connection;
use super::control::{Control, ItemsQuestion, Question, Tell};
use super::core_state::Core;
use super::inquiry::{Told, Wish};
use super::listener::Listener;
use super::mesh::Mesh;
use super::net_ring::Token;
use super::{process, topology};
use crate::engine::PrefixCounters;
use crate::protocol::binary::encode_topology;
use crate::protocol::node::{Classes, NodeAnswer, NodeCommand};
use crate::protocol::pipeline::Completion;
use crate::protocol::text::Dump;
use crate::protocol::{
    Output, Reply, ReplyForm, encode_node, encode_stat, encode_stats_end, encode_stats_text,
};
use crate::request::Hit;
use crate::shard::{ReassignOutcome, ScanCursor};
use crate::stats::{
    Address, ConnectionState, ConnectionStats, CoreClusterStats, CoreStats, Snapshot, Topic,
};

/// Items that a core lists before it continues serving.
const ITEMS_AT_ONCE: u32 = 64;

/// A node command in progress.
pub struct Query {
    token: Token,
    sequence: u32,
    kind: Kind,
    /// Cores that have not replied yet.
    waiting: usize,
    collected: Collected,
}

/// How the replies of the cores are combined.
enum Kind {
    /// Answer with this once all have confirmed.
    Acknowledge(NodeAnswer),
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
        question: ItemsQuestion,
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
enum Plan {
    /// Nothing: this is the answer.
    Answer(NodeAnswer),
    /// The topology, for HELLO.
    Topology,
    /// Every core's reply to each of these queries.
    Ask(Kind, &'static [fn() -> Question]),
    /// Every core's reply to this query.
    AskOne(Kind, Question),
    /// A list of items.
    List(ItemsQuestion, u32),
    /// No answer: the connection closes and the node stops.
    Stop,
}

impl Core {
    /// Starts a node command of a connection whose pipeline is empty.
    pub(super) fn begin_command(
        &mut self,
        index: u32,
        command: NodeCommand<'_>,
        reply: &Reply<'_>,
        mesh: &mut Mesh,
    ) {
        let pipelined = self.connection_at(index).has_answers();
        let plan = match (self.plan(command), command) {
            (Plan::List(..), NodeCommand::Dump { keys_only, .. }) if pipelined => {
                Plan::Answer(NodeAnswer::DumpPipelined { keys_only })
            }
            (plan, _) => plan,
        };
        let connection = self.connection_at(index);
        let token = connection.token;
        let sequence = connection.session.pipeline.wait(reply);
        match plan {
            Plan::Answer(answer) => self.finish(token, sequence, &|reply, mut out| {
                encode_node(reply, answer, &mut out);
            }),
            Plan::Topology => self.answer_topology(token, sequence),
            Plan::Stop => {
                connection.closing = true;
                self.finish(token, sequence, &|_, _| {});
                self.node.leave();
            }
            Plan::Ask(kind, questions) => {
                let questions = questions.iter().map(|question| question());
                self.ask_all(token, sequence, kind, questions.collect(), mesh);
            }
            Plan::AskOne(kind, question) => {
                self.ask_all(token, sequence, kind, vec![question], mesh);
            }
            Plan::List(question, left) => {
                connection.awaiting_node = true;
                connection.out.bytes(question.dump.opening());
                let kind = Kind::Dump { question, core: 0, left };
                let query =
                    Query { token, sequence, kind, waiting: 1, collected: Collected::default() };
                let number = self.queries.insert(query) as u32;
                self.ask_for_items(number, mesh);
            }
        }
    }

    fn plan(&mut self, command: NodeCommand<'_>) -> Plan {
        let permissions = self.node.config.permissions;
        match command {
            NodeCommand::Hello => Plan::Topology,
            NodeCommand::Stats { argument } => match Topic::parse(argument) {
                None => Plan::Answer(NodeAnswer::Unknown),
                Some(topic) => self.plan_stats(topic),
            },
            NodeCommand::FlushAll { .. } if !permissions.flush => {
                self.counters.cmd_flush += 1;
                Plan::Answer(NodeAnswer::FlushNotAllowed)
            }
            NodeCommand::FlushAll { at } => {
                self.counters.cmd_flush += 1;
                self.node.set_flushed_at(at.max(self.now));
                Plan::AskOne(Kind::Acknowledge(NodeAnswer::Done), Question::FlushAll(at))
            }
            NodeCommand::Verbosity(level) => {
                self.node.set_verbosity(level);
                Plan::Answer(NodeAnswer::Done)
            }
            NodeCommand::MemoryLimit { mebibytes } => {
                let bytes = mebibytes.saturating_mul(1 << 20);
                let share = bytes / u64::from(self.core_count());
                Plan::AskOne(Kind::MemoryLimit(bytes), Question::MemoryLimit(share))
            }
            NodeCommand::Shutdown { .. } if !permissions.shutdown => {
                Plan::Answer(NodeAnswer::ShutdownNotEnabled)
            }
            NodeCommand::Shutdown { mode_is_known: false } => {
                Plan::Answer(NodeAnswer::ShutdownModeUnknown)
            }
            NodeCommand::Shutdown { mode_is_known: true } => Plan::Stop,
            NodeCommand::Dump { .. } if !self.node.tuning().crawler => {
                Plan::Answer(NodeAnswer::CrawlerDisabled)
            }
            NodeCommand::Dump { keys_only, .. } if !permissions.dump => {
                Plan::Answer(NodeAnswer::DumpNotAllowed { keys_only })
            }
            NodeCommand::Dump { keys_only, classes } => match Classes::parse(classes) {
                None => Plan::Answer(NodeAnswer::BadClass),
                Some(classes) => {
                    let dump = if keys_only { Dump::Requests } else { Dump::Metadata };
                    Plan::List(items(dump, classes), u32::MAX)
                }
            },
            NodeCommand::CacheDump { .. } if !permissions.dump => {
                Plan::Answer(NodeAnswer::CacheDumpNotAllowed)
            }
            NodeCommand::CacheDump { class, limit } => {
                let limit = if limit == 0 { u32::MAX } else { limit };
                Plan::List(items(Dump::Cache, Classes::only(class)), limit)
            }
            // There are no log lines per request, since their cost would be paid on every request.
            NodeCommand::Watch { .. } => Plan::Answer(NodeAnswer::WatchNotAllowed),
            NodeCommand::ReassignPage { from, to } => {
                Plan::AskOne(Kind::Reassign, Question::ReassignPage(from, to))
            }
            NodeCommand::Crawl { classes } => {
                Plan::Ask(Kind::Crawl { classes: classes.to_vec() }, &[|| Question::Figures])
            }
            NodeCommand::Tune(tune) => Plan::Answer(self.node.tuning().apply(tune)),
        }
    }

    fn plan_stats(&mut self, topic: Topic) -> Plan {
        let dump_allowed = self.node.config.permissions.dump;
        match topic {
            Topic::Reset => {
                Plan::Ask(Kind::Acknowledge(NodeAnswer::StatsReset), &[|| Question::ResetCounters])
            }
            Topic::Detail(_) | Topic::DetailDump | Topic::DetailUsage if !dump_allowed => {
                Plan::Answer(NodeAnswer::DetailNotAllowed)
            }
            Topic::DetailUsage => Plan::Answer(NodeAnswer::DetailUsage),
            Topic::Detail(on) => {
                self.node.tuning().detail = on;
                Plan::AskOne(Kind::Acknowledge(NodeAnswer::Done), Question::CountPrefixes(on))
            }
            Topic::DetailDump => Plan::Ask(Kind::Prefixes, &[|| Question::Prefixes]),
            Topic::Connections => {
                Plan::Ask(Kind::Stats(topic), &[|| Question::Figures, || Question::Connections])
            }
            _ => Plan::Ask(Kind::Stats(topic), &[|| Question::Figures]),
        }
    }

    fn core_count(&self) -> u32 {
        self.engine.config().core_count
    }

    fn ask_all(
        &mut self,
        token: Token,
        sequence: u32,
        kind: Kind,
        questions: Vec<Question>,
        mesh: &mut Mesh,
    ) {
        let cores = self.core_count();
        self.connection_at(token.index).awaiting_node = true;
        let waiting = cores as usize * questions.len();
        let collected = Collected::default();
        let query = Query { token, sequence, kind, waiting, collected };
        let number = self.queries.insert(query) as u32;
        let here = self.engine.config().core;
        for question in questions {
            for core in (0..cores).filter(|&core| core != here) {
                mesh.control(core, Control::Ask(number, question.clone()));
            }
            let tell = self.tell(question);
            self.told(here, number, tell, mesh);
        }
    }

    /// Answers a query about this core.
    pub(super) fn tell(&mut self, question: Question) -> Tell {
        match question {
            Question::Figures => Tell::Figures(Box::new(self.figures())),
            Question::Connections => Tell::Connections(self.list_connections()),
            Question::Prefixes => {
                Tell::Prefixes(Box::new(self.engine.finishing.prefixes.clone().unwrap_or_default()))
            }
            Question::CountPrefixes(on) => {
                // What has been counted remains visible.
                self.engine.finishing.prefixes.get_or_insert_default().switch(on);
                Tell::Done
            }
            Question::ResetCounters => {
                self.engine.shard.reset_counters();
                self.pace.longest_turn = Duration::ZERO;
                if let Some(prefixes) = &mut self.engine.finishing.prefixes {
                    prefixes.clear();
                }
                self.counters = Default::default();
                Tell::Done
            }
            Question::FlushAll(at) => {
                if self.engine.coordinator().is_none() {
                    self.engine.shard.flush_all(at, self.now);
                } else {
                    self.engine.flush_everywhere_at(at, self.now);
                }
                Tell::Done
            }
            Question::MemoryLimit(bytes) => {
                Tell::MemoryLimit(self.engine.shard.set_memory_limit(bytes))
            }
            Question::ReassignPage(from, to) => {
                Tell::Reassigned(self.engine.shard.reassign_page(from, to))
            }
            Question::Items(ItemsQuestion { dump, classes, mut cursor, limit }) => {
                let (mut lines, mut count) = (Vec::new(), 0);
                let now = self.now;
                let visit = |hit: &Hit<'_>| {
                    if classes.include(hit.class) && !hit.deadline.is_past(now) {
                        dump.item(hit, now, &mut lines);
                        count += 1;
                    }
                };
                let more = self.engine.shard.scan(&mut cursor, limit, now, visit);
                Tell::Items { lines, count, next: more.then_some(cursor) }
            }
        }
    }

    /// Handles core `from`'s reply to query `number`.
    pub(super) fn told(&mut self, from: u32, number: u32, tell: Tell, mesh: &mut Mesh) {
        let query = self.queries.get_mut(number as usize).expect("asked under this number");
        let collected = &mut query.collected;
        match tell {
            Tell::Done => {}
            Tell::Figures(figures) => collected.figures.push((from, *figures)),
            Tell::Connections(connections) => collected.connections.extend(connections),
            Tell::Prefixes(prefixes) => collected.prefixes.add(&prefixes),
            Tell::MemoryLimit(possible) => collected.refused |= !possible,
            Tell::Reassigned(outcome) => {
                // One core that moves a page suffices; otherwise the first refusal is reported.
                if outcome == ReassignOutcome::Started || collected.reassigned.is_none() {
                    collected.reassigned = Some(outcome);
                }
            }
            Tell::Items { lines, count, next } => {
                return self.listed(number, &lines, count, next, mesh);
            }
        }
        query.waiting -= 1;
        if query.waiting == 0 {
            let query = self.queries.remove(number as usize);
            self.answer_query(query);
        }
    }

    fn answer_query(&mut self, query: Query) {
        let Query { token, sequence, kind, collected, .. } = query;
        let Collected { mut figures, connections, prefixes, refused, reassigned } = collected;
        figures.sort_by_key(|(core, _)| *core);
        let cores: Vec<CoreStats> = figures.into_iter().map(|(_, figures)| figures).collect();
        let answer = match kind {
            Kind::Acknowledge(answer) => answer,
            Kind::MemoryLimit(_) if refused => NodeAnswer::MemoryLimitUnreachable,
            Kind::MemoryLimit(bytes) => {
                self.node.tuning().memory_bytes = Some(bytes);
                NodeAnswer::Done
            }
            Kind::Reassign => match reassigned {
                Some(ReassignOutcome::Started) => NodeAnswer::Done,
                Some(ReassignOutcome::BadClass) => NodeAnswer::ReassignBadClass,
                Some(ReassignOutcome::Busy) => NodeAnswer::ReassignBusy,
                Some(ReassignOutcome::Same) => NodeAnswer::ReassignSame,
                Some(ReassignOutcome::NoSpare) | None => NodeAnswer::ReassignNoSpare,
            },
            Kind::Crawl { classes } => {
                let items = cores.iter().map(|core| core.gauges.items).sum();
                self.node.tuning().crawl(&classes, items)
            }
            Kind::Prefixes => {
                let dump = prefixes.dump();
                let write = |reply: &Reply<'_>, mut out: &mut dyn Output| {
                    encode_stats_text(reply, &dump, &mut out);
                };
                return self.finish(token, sequence, &write);
            }
            Kind::Stats(topic) => {
                return self.answer_stats(token, sequence, topic, &cores, &connections);
            }
            Kind::Dump { .. } => unreachable!("a dump ends with its last core"),
        };
        self.finish(token, sequence, &|reply, mut out| encode_node(reply, answer, &mut out));
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
        let tuning = *node.tuning();
        let members = node.members();
        let snapshot = Snapshot {
            cluster: members.as_deref(),
            now: self.now,
            process: &process::stats(node.clock.uptime()),
            config: &node.config,
            tuning: &tuning,
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
                if let ReplyForm::Binary(form) = reply.form {
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
        session.pipeline.complete(sequence, Completion::Written(write), now, out);
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
        let query = self.queries.get(number as usize).expect("a dump under way");
        let Kind::Dump { question, core, left } = &query.kind else {
            unreachable!("only dumps ask for items");
        };
        let question = ItemsQuestion { limit: ITEMS_AT_ONCE.min(*left), ..question.clone() };
        let core = *core;
        mesh.control_or_here(core, Control::Ask(number, Question::Items(question)));
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
        let query = self.queries.get_mut(number as usize).expect("a dump under way");
        let (token, sequence) = (query.token, query.sequence);
        let Kind::Dump { question, core, left } = &mut query.kind else {
            unreachable!("only dumps list items");
        };
        *left -= count.min(*left);
        match next {
            Some(cursor) => question.cursor = cursor,
            None => {
                *core += 1;
                question.cursor = ScanCursor::default();
            }
        }
        let done = *core == cores || *left == 0;
        let closing = question.dump.closing();
        let Some(connection) = self.connection(token) else {
            self.queries.remove(number as usize);
            return;
        };
        connection.out.bytes(lines);
        self.mark_dirty(token.index);
        if done {
            self.queries.remove(number as usize);
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
            let token = self.queries[number as usize].token;
            match self.connection(token) {
                None => drop(self.queries.remove(number as usize)),
                Some(connection) if connection.is_output_full() => self.dumps_waiting.push(number),
                Some(_) => self.ask_for_items(number, mesh),
            }
        }
    }

    /// Answers a statistics request from outside the mesh.
    pub(super) fn tell_outside(&self, wish: Wish) {
        let connections = match wish {
            Wish::Figures => Vec::new(),
            Wish::Connections => self.list_connections(),
        };
        let here = self.engine.config().core as usize;
        self.node.cores[here].inquiry.tell(Told { figures: self.figures(), connections });
    }

    fn figures(&self) -> CoreStats {
        let shard = &self.engine.shard;
        let queues = &self.node.config.queues;
        let traffic = self.engine.traffic;
        let busy = self.pace.busy();
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
            longest_turn: self.pace.longest_turn,
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
            arriving: coordinator.filling().0,
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
                } else if connection.arriving.is_some() || waits_behind_a_line(connection) {
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

fn address(address: std::io::Result<socket2::SockAddr>) -> Address {
    match address {
        Ok(address) => match (address.as_socket(), address.as_pathname()) {
            (Some(address), _) => Address::Tcp(address),
            (None, path) => Address::Unix(path.unwrap_or("unnamed".as_ref()).to_path_buf()),
        },
        Err(_) => Address::Tcp(SocketAddr::from(([0, 0, 0, 0], 0))),
    }
}

/// Whether the waiting input begins with a whole line, as far as it is inspected.
fn waits_behind_a_line(connection: &Connection) -> bool {
    const LOOKED_AT_BYTES: usize = 4096;
    let pending = connection.pending.bytes();
    pending[..pending.len().min(LOOKED_AT_BYTES)].contains(&b'\n')
}

fn items(dump: Dump, classes: Classes) -> ItemsQuestion {
    ItemsQuestion { dump, classes, cursor: ScanCursor::default(), limit: 0 }
}
