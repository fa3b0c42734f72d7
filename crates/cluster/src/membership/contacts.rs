//! Tracks which senders have proved that they receive at their address, and what that permits.
//!
//! The source of a datagram can be forged, so it justifies neither trust, nor a long answer, nor a
//! connection. Two proofs do, and a sender that does not receive at an address can provide neither:
//!
//! - A *nonce* goes out with each join probe and comes back in its answer. An answer counts once, for a
//!   short while, and only for the address that was probed.
//! - A *cookie* accompanies everything that this node sends to an address, and is required in gossip
//!   that claims to come from there. It is computed from a secret and the address, so no state is
//!   kept for strangers.
//!
//! Third parties are never sent more than join probes, a bounded number per second and address.

use core::net::SocketAddr;
use std::collections::BTreeMap;
use std::time::Duration;

use super::super::frame::AuthKey;
use super::super::identity::{Boot, Identity, NodeKey};
use ringlane_types::time::Instant;
use ringlane_types::wire::Writer;

/// Maximum addresses remembered, answered or not. Beyond, those that never answered are dropped,
/// then those not heard of for longest.
const CONTACTS_MAX: usize = 4096;
/// Probes that wait for their answer; with more, the oldest are forgotten.
const JOIN_PROBES_MAX: usize = 4096;
/// A probe that is not answered within this is forgotten.
const JOIN_PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// An address is not probed more often than this.
const JOIN_PROBE_INTERVAL_MIN: Duration = Duration::from_millis(150);
/// Probes a second of addresses that only others have named.
const UNVERIFIED_PROBES_PER_SECOND: u64 = 64;

/// What makes cookies and nonces that nobody can guess.
#[derive(Debug)]
pub(super) struct Secret {
    key: AuthKey,
    nonces: u64,
}

impl Secret {
    /// The secret of one boot, from bits that nobody else knows.
    pub(super) fn new(bits: [u64; 4]) -> Self {
        let bytes: Vec<u8> = bits.iter().flat_map(|word| word.to_le_bytes()).collect();
        Self { key: AuthKey::from_file_contents(&bytes).child(&[b"cookies"]), nonces: 0 }
    }

    /// What `address` must show. Never 0, which stands for none.
    pub(super) fn cookie(&self, address: SocketAddr) -> u64 {
        let mut bytes = Vec::with_capacity(24);
        bytes.put_address(address);
        self.number(&[b"cookie", &bytes])
    }

    fn nonce(&mut self) -> u64 {
        self.nonces += 1;
        self.number(&[b"nonce", &self.nonces.to_le_bytes()])
    }

    fn number(&self, parts: &[&[u8]]) -> u64 {
        let tag = self.key.tag(parts);
        u64::from_le_bytes(tag[..8].try_into().expect("eight of sixteen")).max(1)
    }
}

/// A join probe that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JoinProbe {
    /// Where to.
    pub to: SocketAddr,
    /// A member said that this node's id is taken by the process there.
    pub named_by_member: bool,
    at: Instant,
}

#[derive(Debug)]
struct Contact {
    /// What it wants to see.
    cookie: Option<u64>,
    /// Who has answered there: in which boot, and in which renewal of it.
    who: Option<(NodeKey, Boot, u32)>,
    heard_at: Instant,
    probed_at: Option<Instant>,
    /// Gossip that waits for the cookie.
    held: Option<Vec<u8>>,
}

/// What is known of addresses.
#[derive(Debug, Default)]
pub(super) struct Contacts {
    by_address: BTreeMap<SocketAddr, Contact>,
    probes: BTreeMap<u64, JoinProbe>,
    /// The second for which probes of unverified addresses are counted, and how many.
    unverified: (u64, u64),
}

impl Contacts {
    /// What gossip to `address` must carry; `None` until that is known.
    pub(super) fn cookie_of(&self, address: SocketAddr) -> Option<u64> {
        self.by_address.get(&address)?.cookie
    }

    /// Keeps gossip to `address` until its cookie is known, in place of what waited before.
    pub(super) fn hold(&mut self, address: SocketAddr, gossip: Vec<u8>, now: Instant) {
        self.contact(address, now).held = Some(gossip);
    }

    /// The gossip that waited for the cookie of `address`.
    pub(super) fn release(&mut self, address: SocketAddr) -> Option<Vec<u8>> {
        self.by_address.get_mut(&address)?.held.take()
    }

    /// Whether this renewal of this boot has answered at its address.
    pub(super) fn has_answered(&self, identity: &Identity) -> bool {
        let contact = self.by_address.get(&identity.gossip);
        contact.and_then(|contact| contact.who).is_some_and(|(key, boot, renewal)| {
            (key, boot) == (identity.key, identity.boot) && renewal >= identity.renewal
        })
    }

    /// Whoever is at the address of `identity` has proved so, is called that, and wants to see
    /// `cookie`.
    pub(super) fn proved(&mut self, identity: &Identity, cookie: u64, now: Instant) {
        let contact = self.contact(identity.gossip, now);
        contact.who = Some((identity.key, identity.boot, identity.renewal));
        contact.cookie = Some(cookie);
        contact.heard_at = now;
    }

    /// Whoever is at `address` has proved so and wants to see `cookie`. Only where something was
    /// sent to.
    pub(super) fn renewed(&mut self, address: SocketAddr, cookie: u64) {
        if let Some(contact) = self.by_address.get_mut(&address) {
            contact.cookie = Some(cookie);
        }
    }

    /// The nonce for a probe of `to`; `None` while there were too many. `unverified`: only others
    /// have named the address.
    pub(super) fn begin_probe(
        &mut self,
        to: SocketAddr,
        named_by_member: bool,
        unverified: bool,
        secret: &mut Secret,
        now: Instant,
    ) -> Option<u64> {
        let recent = |at: Instant| now.since(at) < JOIN_PROBE_INTERVAL_MIN && now >= at;
        if unverified {
            let second = now.as_secs();
            let (counted, probes) = self.unverified;
            let probes = if counted == second { probes } else { 0 };
            let known = self.by_address.get(&to).and_then(|contact| contact.probed_at);
            if probes >= UNVERIFIED_PROBES_PER_SECOND || known.is_some_and(recent) {
                return None;
            }
            self.unverified = (second, probes + 1);
        }
        self.contact(to, now).probed_at = Some(now);
        if self.probes.len() >= JOIN_PROBES_MAX {
            self.probes.retain(|_, probe| now.since(probe.at) < JOIN_PROBE_TIMEOUT / 2);
            if self.probes.len() >= JOIN_PROBES_MAX {
                self.probes.clear();
            }
        }
        let nonce = secret.nonce();
        self.probes.insert(nonce, JoinProbe { to, named_by_member, at: now });
        Some(nonce)
    }

    /// The probe that an answer with `nonce` is for. It counts once.
    pub(super) fn answered(&mut self, nonce: u64, now: Instant) -> Option<JoinProbe> {
        self.probes.remove(&nonce).filter(|probe| now.since(probe.at) < JOIN_PROBE_TIMEOUT)
    }

    fn contact(&mut self, address: SocketAddr, now: Instant) -> &mut Contact {
        if self.by_address.len() >= CONTACTS_MAX && !self.by_address.contains_key(&address) {
            let worth = |contact: &Contact| (contact.who.is_some(), contact.heard_at);
            let least = self.by_address.iter().min_by_key(|(_, contact)| worth(contact));
            let least = *least.expect("the table is full").0;
            self.by_address.remove(&least);
        }
        self.by_address.entry(address).or_insert(Contact {
            cookie: None,
            who: None,
            heard_at: now,
            probed_at: None,
            held: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_millis(1_700_000_000_000);

    fn address(number: u16) -> SocketAddr {
        SocketAddr::new([10, 0, (number >> 8) as u8, number as u8].into(), 7946)
    }

    #[test]
    fn an_answer_counts_once_and_soon() {
        let (mut contacts, mut secret) = (Contacts::default(), Secret::new([1, 2, 3, 4]));
        let mut probe = |contacts: &mut Contacts, now| {
            contacts
                .begin_probe(address(1), false, false, &mut secret, now)
                .expect("not unverified")
        };
        let nonce = probe(&mut contacts, START);
        assert_eq!(contacts.answered(nonce ^ 1, START), None, "guessed");
        assert_eq!(contacts.answered(nonce, START).map(|probe| probe.to), Some(address(1)));
        assert_eq!(contacts.answered(nonce, START), None, "twice");
        let late = probe(&mut contacts, START);
        assert_eq!(contacts.answered(late, START.after(JOIN_PROBE_TIMEOUT)), None, "too late");
    }

    #[test]
    fn cookies_differ_by_address_and_by_life() {
        let (one, other) = (Secret::new([1, 2, 3, 4]), Secret::new([1, 2, 3, 5]));
        assert_eq!(one.cookie(address(1)), one.cookie(address(1)));
        assert_ne!(one.cookie(address(1)), one.cookie(address(2)));
        assert_ne!(one.cookie(address(1)), other.cookie(address(1)));
    }

    #[test]
    fn third_parties_are_probed_a_bounded_number_of_times_a_second() {
        let (mut contacts, mut secret) = (Contacts::default(), Secret::new([1, 2, 3, 4]));
        let mut probes = |address: SocketAddr, now| {
            contacts.begin_probe(address, false, true, &mut secret, now).is_some()
        };
        let made = (0..5000).filter(|&number| probes(address(number), START)).count();
        assert_eq!(made as u64, UNVERIFIED_PROBES_PER_SECOND);
        let later = START.after(Duration::from_secs(1));
        assert!(probes(address(9999), later));
        assert!(!probes(address(9999), later), "the same address again");
        assert!(probes(address(9999), later.after(JOIN_PROBE_INTERVAL_MIN)));
    }

    #[test]
    fn tables_stay_bounded_and_keep_who_has_answered() {
        let (mut contacts, mut secret) = (Contacts::default(), Secret::new([1, 2, 3, 4]));
        let member = Identity::new("a", Boot(1), address(60_000), address(60_000));
        contacts.proved(&member, 7, START);
        for number in 0..20_000 {
            let now = START.after(Duration::from_millis(number.into()));
            contacts.begin_probe(address(number), false, false, &mut secret, now);
            contacts.hold(address(number), vec![0; 10], now);
        }
        assert!(
            contacts.by_address.len() <= CONTACTS_MAX && contacts.probes.len() <= JOIN_PROBES_MAX
        );
        assert_eq!(contacts.cookie_of(address(60_000)), Some(7));
        assert!(contacts.has_answered(&member));
        let restarted = Identity::new("a", Boot(2), address(60_000), address(60_000));
        assert!(!contacts.has_answered(&restarted), "another life has not");
    }
}
