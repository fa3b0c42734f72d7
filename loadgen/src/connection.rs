//! One connection's requests and answers, without its socket.
//!
//! Requests are appended to an output buffer and recorded until their answers arrive, in order.
//! Received bytes are parsed in place; only an incomplete answer at the end of a receive is stored.

use std::collections::VecDeque;

use crate::wire::{AnswerDecoder, AnswerOutcome, Asked, Decoded, Protocol, Trouble, WireRequest};
use crate::workload::mix::WorkloadCommand;
use crate::workload::{Wanted, Workload};

/// A request that is waiting for its answer.
#[derive(Clone, Copy, Debug)]
pub struct PendingRequest {
    /// When it was due, in nanoseconds since the start.
    pub due_ns: u64,
    /// When it was passed to the kernel.
    pub sent_ns: u64,
    /// The key; the first one of a multiget.
    pub wanted: Wanted,
    /// The command.
    pub command: WorkloadCommand,
}

/// The protocol state of one connection.
#[derive(Debug)]
pub struct ClientConnection {
    protocol: Protocol,
    pending: VecDeque<PendingRequest>,
    /// The keys of pending multigets: `keys_each` for every place in the pipeline.
    multiget_keys: Vec<Wanted>,
    keys_each: usize,
    pipeline: usize,
    /// Requests ever pushed and answered; their places follow from these.
    pushed: u64,
    answered: u64,
    decoder: AnswerDecoder,
    /// Received bytes of an incomplete answer.
    carry: Vec<u8>,
    /// Bytes to send.
    pub output: Vec<u8>,
}

impl ClientConnection {
    /// A connection with at most `pipeline` requests waiting.
    pub fn new(protocol: Protocol, workload: &Workload, pipeline: usize) -> Self {
        let multigets = workload.mix.weight(WorkloadCommand::Multiget) > 0;
        let keys_each = if multigets { workload.multiget_keys } else { 0 };
        Self {
            protocol,
            pending: VecDeque::with_capacity(pipeline),
            multiget_keys: vec![Wanted::default(); keys_each * pipeline],
            keys_each,
            pipeline,
            pushed: 0,
            answered: 0,
            decoder: AnswerDecoder::default(),
            carry: Vec::new(),
            output: Vec::new(),
        }
    }

    /// Whether another request may be pushed.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.pending.len() < self.pipeline
    }

    /// Number of unanswered requests.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// Requests pushed since the connection was opened.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Writes a request to the output. There must be room.
    #[inline]
    pub fn push(
        &mut self,
        workload: &Workload,
        request: &WireRequest<'_>,
        due_ns: u64,
        now_ns: u64,
    ) {
        debug_assert!(self.has_room());
        if request.command == WorkloadCommand::Multiget {
            let place = (self.pushed % self.pipeline as u64) as usize * self.keys_each;
            self.multiget_keys[place..place + self.keys_each].copy_from_slice(request.keys);
        }
        crate::wire::encode(self.protocol, workload, request, &mut self.output);
        let (wanted, command) = (request.keys[0], request.command);
        self.pending.push_back(PendingRequest { due_ns, sent_ns: now_ns, wanted, command });
        self.pushed += 1;
    }

    /// Parses received bytes and passes every complete answer to `answered`.
    #[inline]
    pub fn receive(
        &mut self,
        workload: &Workload,
        bytes: &[u8],
        mut answered: impl FnMut(&PendingRequest, AnswerOutcome),
    ) -> Result<(), Trouble> {
        if self.carry.is_empty() {
            let consumed = self.read(workload, bytes, &mut answered)?;
            self.carry.extend_from_slice(&bytes[consumed..]);
            return Ok(());
        }
        let mut carry = std::mem::take(&mut self.carry);
        carry.extend_from_slice(bytes);
        let consumed = self.read(workload, &carry, &mut answered)?;
        carry.drain(..consumed);
        self.carry = carry;
        Ok(())
    }

    #[inline]
    fn read(
        &mut self,
        workload: &Workload,
        input: &[u8],
        answered: &mut impl FnMut(&PendingRequest, AnswerOutcome),
    ) -> Result<usize, Trouble> {
        let mut at = 0;
        while at < input.len() {
            let Some(pending) = self.pending.front() else {
                return Err(Trouble::Unspoken {
                    expected: "no answer, as nothing was requested",
                    received: crate::workload::values::shown(&input[at..]),
                });
            };
            let keys = match pending.command {
                WorkloadCommand::Multiget => {
                    let place = (self.answered % self.pipeline as u64) as usize * self.keys_each;
                    &self.multiget_keys[place..place + self.keys_each]
                }
                _ => std::slice::from_ref(&pending.wanted),
            };
            let asked = Asked { command: pending.command, keys };
            match self.decoder.next(self.protocol, workload, &asked, &input[at..])? {
                Decoded::More { consumed } => return Ok(at + consumed),
                Decoded::Done { consumed, outcome } => {
                    at += consumed;
                    answered(pending, outcome);
                    self.pending.pop_front();
                    self.answered += 1;
                }
            }
        }
        Ok(at)
    }

    /// The unanswered requests.
    pub fn unanswered(&self) -> impl Iterator<Item = &PendingRequest> {
        self.pending.iter()
    }

    /// Resets the state for a new connection; returns the number of unanswered requests.
    pub fn reset(&mut self) -> usize {
        let lost = self.pending.len();
        self.pending.clear();
        self.carry.clear();
        self.output.clear();
        self.decoder = AnswerDecoder::default();
        (self.pushed, self.answered) = (0, 0);
        lost
    }
}
