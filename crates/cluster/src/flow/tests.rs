use proptest::prelude::*;

use super::*;
use crate::frame::{Opened, Opener};
use crate::message::OperationId;
use crate::record::Record;
use crate::version::Version;
use ringlane_ring::Point;
use ringlane_types::request::Consistency;

const QUEUE: usize = 4 << 20;
const MESSAGE_MAX: usize = 64 << 20;

/// Both ends of one direction.
struct Way {
    sending: Sending,
    opener: Opener,
    gathering: Gathering,
    arrivals: Arrivals<u8>,
    /// Messages that have arrived, each behind its length.
    arrived: Vec<Vec<u8>>,
    longest_send: usize,
}

impl Way {
    fn new(message_bytes_max: usize) -> Self {
        Self {
            sending: Sending::new(Sealer::new(None), QUEUE, message_bytes_max),
            opener: Opener::new(None),
            gathering: Gathering::new(message_bytes_max),
            arrivals: Arrivals::new(MESSAGE_MAX),
            arrived: Vec::new(),
            longest_send: 0,
        }
    }

    fn say(&mut self, message: &[u8]) {
        let out = self.sending.room();
        out.extend_from_slice(&(message.len() as u32).to_le_bytes());
        out.extend_from_slice(message);
    }

    /// One send, which arrives. False when there was nothing to send.
    fn step(&mut self, gives_credit: bool) -> bool {
        self.sending.separate();
        if !self.sending.has_work() {
            return false;
        }
        let sent = self.sending.take();
        self.longest_send = self.longest_send.max(sent.len());
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let Ok(Opened::Frame { consumed, body }) = self.opener.open(rest) else {
                panic!("not whole frames")
            };
            assert!(body.len() <= FRAME_BYTES_MAX);
            rest = &rest[consumed..];
            match FrameBody::read(body).expect("well formed") {
                FrameBody::Messages(messages) => {
                    self.arrived.extend(split(messages).map(<[u8]>::to_vec));
                }
                FrameBody::Piece { class, total, bytes } => {
                    let whole = self.gathering.piece(class, total, bytes).expect("within rules");
                    if let Some(total) = self.gathering.wants_in(class) {
                        let admitted = self.arrivals.begins(0, class, total);
                        self.gathering.admit(class, admitted);
                    }
                    if let Some(whole) = whole {
                        self.arrived.push(whole.clone());
                        match self.gathering.give_back(class, whole) {
                            0 => self.arrivals.forget_one(0, class),
                            admitted => self.arrivals.ends(class, admitted),
                        }
                    }
                    if gives_credit && let Some(up_to) = self.gathering.due_credit(class, false) {
                        self.sending.allow(class, up_to);
                    }
                }
                FrameBody::Credit { .. } => {}
            }
        }
        self.sending.sent(sent);
        true
    }

    fn arrived(&self, message: &[u8]) -> bool {
        self.arrived.iter().any(|arrived| &arrived[4..] == message)
    }
}

/// A message of `class` and `bytes`, told from others by `number`.
fn message(class: Class, bytes: usize, number: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let operation = OperationId(1);
    match class {
        Class::Request => Message::Fetch { operation, epoch: 1, key: b"k" }.write(&mut out),
        Class::Forward => Message::Forward(crate::message::Forward {
            operation,
            stamp: 0,
            consistency: Consistency::Configured,
            point: Point(0),
            after: Version::NONE,
            request: b"",
        })
        .write(&mut out),
        Class::Answer => {
            let outcome = crate::message::ReadOutcome::Record(Record::deleted(Version::NONE));
            Message::ReadReply { operation, outcome }.write(&mut out);
        }
    }
    let mut message = out.split_off(4);
    message.resize(bytes.max(message.len()), number);
    message
}

#[test]
fn short_messages_of_a_turn_are_one_frame_and_nothing_more() {
    let mut way = Way::new(MESSAGE_MAX);
    way.say(b"one");
    way.say(b"two");
    way.sending.separate();
    let sent = way.sending.take();
    assert_eq!(sent.len(), HEAD_BYTES + 2 * (4 + 3));
    way.sending.sent(sent);
    assert!(!way.sending.has_work() && way.sending.waiting_bytes() == 0);
}

#[test]
fn what_is_short_passes_what_is_long_within_one_send() {
    let mut way = Way::new(MESSAGE_MAX);
    let long = message(Class::Request, 20 << 20, 1);
    way.say(&long);
    assert!(way.step(true) && !way.arrived(&long));
    way.say(b"probe");
    assert!(way.step(true));
    assert!(way.arrived(b"probe") && !way.arrived(&long), "it did not wait");
    while way.step(true) {}
    assert!(way.arrived(&long));
    assert!(way.longest_send <= SEND_BYTES + PIECE_BYTES + 1024, "{}", way.longest_send);
}

#[test]
fn without_credit_pieces_stop_at_the_window_and_everything_else_goes_on() {
    let mut way = Way::new(MESSAGE_MAX);
    let (asked, answer) =
        (message(Class::Request, 3 << 20, 1), message(Class::Answer, 100 << 10, 2));
    way.say(&asked);
    while way.step(false) {}
    let held = way.gathering.held_bytes();
    assert_eq!(held as u64, UNASKED_BYTES, "the receiver holds what may come unasked");
    way.say(b"short");
    way.say(&answer);
    while way.step(false) {}
    assert!(way.arrived(b"short") && way.arrived(&answer), "answers have credit of their own");
    assert!(!way.arrived(&asked));
    let up_to = way.gathering.due_credit(Class::Request, false).expect("it was admitted");
    way.sending.allow(Class::Request, up_to);
    while way.step(true) {}
    assert!(way.arrived(&asked));
}

#[test]
fn a_queue_is_full_for_its_own_kind_only_and_again_open_when_it_has_left() {
    let mut way = Way::new(MESSAGE_MAX);
    for number in 0..4 {
        assert!(!way.sending.is_full(Class::Request, 1 << 20, QUEUE));
        way.say(&message(Class::Request, 1 << 20, number));
        way.sending.separate();
    }
    assert!(way.sending.is_full(Class::Request, 1 << 20, QUEUE) && !way.sending.is_roomy(QUEUE));
    assert!(
        !way.sending.is_full(Class::Request, 100, QUEUE),
        "short requests do not wait for long ones"
    );
    assert!(!way.sending.is_full(Class::Answer, 1 << 20, QUEUE));
    for number in 0..4 {
        way.say(&message(Class::Answer, 1 << 20, number));
        way.sending.separate();
    }
    assert!(way.sending.is_full(Class::Answer, 1 << 20, QUEUE));
    assert!(way.sending.waiting_bytes() <= 2 * QUEUE + 1024);
    while way.step(true) {}
    assert!(way.sending.is_roomy(QUEUE) && way.sending.waiting_bytes() == 0);
    assert_eq!(way.arrived.len(), 8);
}

#[test]
fn when_all_links_together_hold_much_each_takes_one_long_message() {
    let mut way = Way::new(MESSAGE_MAX);
    assert!(!way.sending.is_full(Class::Request, 1 << 20, 0));
    way.say(&message(Class::Request, 1 << 20, 1));
    assert!(way.sending.is_full(Class::Request, 1 << 20, 0));
    way.sending.separate();
    assert!(way.sending.is_full(Class::Request, 1 << 20, 0));
    assert!(!way.sending.is_full(Class::Answer, 1 << 20, 0) && !way.sending.is_roomy(0));
    assert!(!way.sending.is_full(Class::Request, 100, 0), "short ones go on");
    assert!(!way.sending.is_full(Class::Request, 1 << 20, QUEUE));
    while way.step(true) {}
    assert!(way.sending.is_roomy(0));
}

#[test]
fn what_the_peer_does_not_take_is_dropped_and_counted() {
    let mut way = Way::new(100 << 10);
    way.say(&message(Class::Request, 200 << 10, 1));
    way.say(b"short");
    way.say(&message(Class::Request, 90 << 10, 2));
    assert_eq!(way.sending.separate(), 1);
    while way.step(true) {}
    assert_eq!(way.arrived.len(), 2);
}

#[test]
fn a_receiver_holds_no_more_than_it_has_allowed() {
    let piece = vec![0; PIECE_BYTES];
    let mut gathering = Gathering::new(MESSAGE_MAX);
    assert_eq!(
        gathering.piece(Class::Request, MESSAGE_MAX + 1, &piece),
        Err(MalformedFrame),
        "too long"
    );
    let mut gathering = Gathering::new(MESSAGE_MAX);
    assert_eq!(
        gathering.piece(Class::Answer, 10, &piece),
        Err(MalformedFrame),
        "more than the whole"
    );
    let mut gathering = Gathering::new(MESSAGE_MAX);
    assert_eq!(gathering.piece(Class::Answer, PIECE_BYTES * 2, &piece), Ok(None));
    assert_eq!(
        gathering.piece(Class::Answer, PIECE_BYTES * 3, &piece),
        Err(MalformedFrame),
        "another"
    );
    let mut gathering = Gathering::new(MESSAGE_MAX);
    let total = 2 * WINDOW_BYTES as usize;
    for _ in 0..UNASKED_BYTES as usize / PIECE_BYTES {
        assert_eq!(gathering.piece(Class::Request, total, &piece), Ok(None));
    }
    assert_eq!(gathering.due_credit(Class::Request, false), None, "it was not admitted");
    assert_eq!(gathering.piece(Class::Request, total, &piece), Err(MalformedFrame), "no credit");
}

#[test]
fn messages_are_admitted_in_order_while_they_have_room_and_one_always() {
    const MIB: usize = 1 << 20;
    let mut arrivals = Arrivals::new(3 * MIB);
    assert!(arrivals.begins('a', Class::Request, 5 * MIB), "one, however long");
    assert!(
        !arrivals.begins('b', Class::Answer, MIB) && !arrivals.begins('c', Class::Request, MIB)
    );
    assert_eq!(arrivals.next_admitted(), None);
    arrivals.ends(Class::Request, 5 * MIB);
    assert!(!arrivals.begins('d', Class::Request, MIB), "it does not pass those that wait");
    assert!(!arrivals.begins('e', Class::Answer, MIB));
    let admitted: Vec<_> = std::iter::from_fn(|| arrivals.next_admitted()).collect();
    let expected = [('b', Class::Answer), ('c', Class::Request), ('d', Class::Request)];
    assert_eq!((admitted, arrivals.bytes()), (expected.to_vec(), 3 * MIB));
    arrivals.forget('e');
    arrivals.ends(Class::Answer, MIB);
    assert_eq!((arrivals.next_admitted(), arrivals.bytes()), (None, 2 * MIB));
}

#[test]
fn requests_to_be_coordinated_wait_for_memory_and_are_passed_by_what_makes_it() {
    const MIB: usize = 1 << 20;
    let mut arrivals = Arrivals::new(64 * MIB);
    arrivals.set_forward_room(3 * MIB);
    assert!(arrivals.begins('a', Class::Forward, 2 * MIB));
    assert!(!arrivals.begins('b', Class::Forward, 2 * MIB), "both would be too much");
    assert!(arrivals.begins('c', Class::Request, MIB) && arrivals.begins('d', Class::Answer, MIB));
    assert!(!arrivals.begins('e', Class::Forward, MIB), "in order");
    arrivals.ends(Class::Forward, 2 * MIB);
    assert_eq!(arrivals.next_admitted(), Some(('b', Class::Forward)), "one may be too long");
    arrivals.ends(Class::Forward, 2 * MIB);
    assert!(arrivals.refuses_forwards());
    assert_eq!(arrivals.next_admitted(), None, "all of the memory is used");
    arrivals.set_forward_room(3 * MIB);
    assert_eq!(arrivals.next_admitted(), Some(('e', Class::Forward)));
    assert_eq!(arrivals.next_admitted(), None);
}

#[test]
fn marks_that_mean_nothing_are_refused() {
    for mark in [MARK + 6, u32::MAX] {
        let mut body = mark.to_le_bytes().to_vec();
        assert_eq!(FrameBody::read(&body), Err(MalformedFrame));
        body.resize(40, 0);
        assert_eq!(FrameBody::read(&body), Err(MalformedFrame));
    }
    let empty_piece = [&MARK.to_le_bytes()[..], &[9, 0, 0, 0]].concat();
    assert_eq!(FrameBody::read(&empty_piece), Err(MalformedFrame));
    let short_credit = [&(MARK + 3).to_le_bytes()[..], &[9, 0, 0, 0]].concat();
    assert_eq!(FrameBody::read(&short_credit), Err(MalformedFrame));
    assert_eq!(FrameBody::read(b"xy"), Ok(FrameBody::Messages(b"xy")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_message_arrives_once_and_long_ones_of_a_class_in_order(
        said in proptest::collection::vec((0..3usize, 0usize..400_000, any::<bool>()), 1..60),
    ) {
        let mut way = Way::new(MESSAGE_MAX);
        let mut expected = Vec::new();
        for (number, (class, bytes, turn_ends)) in said.iter().enumerate() {
            let class = Class::ALL[*class];
            // Most are short.
            let bytes = if bytes % 3 == 0 { *bytes } else { bytes % 300 };
            let message = message(class, bytes.max(40), number as u8);
            way.say(&message);
            expected.push(message);
            if *turn_ends {
                way.step(true);
            }
        }
        while way.step(true) {}
        let mut arrived: Vec<Vec<u8>> = way.arrived.iter().map(|m| m[4..].to_vec()).collect();
        for class in Class::ALL {
            let long = |m: &&Vec<u8>| m.len() + 4 > LONG_BYTES && Class::of(m) == class;
            let sent: Vec<&Vec<u8>> = expected.iter().filter(long).collect();
            let came: Vec<&Vec<u8>> = arrived.iter().filter(long).collect();
            prop_assert_eq!(sent, came);
        }
        expected.sort();
        arrived.sort();
        prop_assert_eq!(arrived, expected);
        prop_assert_eq!(way.sending.waiting_bytes() + way.gathering.held_bytes(), 0);
        prop_assert_eq!(way.arrivals.bytes(), 0);
    }

    #[test]
    fn any_body_is_read_without_panic(body: Vec<u8>) {
        let _ = FrameBody::read(&body);
        let _ = FrameBody::read(&[&MARK.to_le_bytes()[..], &body].concat());
    }
}
