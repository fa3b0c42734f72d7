//! Frames between nodes: authenticated, and never accepted twice.
//!
//! A frame carries one core's messages of a turn for a peer, usually many. With a cluster key each
//! frame ends in a tag over everything before it, and its sequence number is accepted once: a frame
//! recorded and replayed by an eavesdropper is refused, in the same session by the number, in
//! another one by the tag, since every session has its own keys (see `handshake`). Nothing is
//! encrypted.
//!
//! ```text
//! | body length u32 | sequence u64 | body | tag, 16 bytes, only with a key |     little-endian
//! ```
//!
//! The tag is BLAKE3's keyed hash, cut to 128 bits: one pass without a second hash around it
//! (HMAC hashes short frames twice and lacks SIMD for long ones), safe to reuse a key with
//! (Poly1305 is not), and an official MAC with 128 bits of strength (SipHash has 64 or less).
//! Frames may overtake each other within a window, so several connections can share a session.

use std::fmt;

/// Bytes of a frame before its body.
pub const HEAD_BYTES: usize = 12;

/// Bytes of the tag that ends a frame when there is a key.
pub const TAG_BYTES: usize = 16;

/// Maximum length of a frame's body. A longer one is refused before it arrives.
pub const BODY_BYTES_MAX: usize = (1 << 30) + (1 << 20);

/// Sequence numbers this far below the greatest one seen are still told apart; older ones are
/// refused as if seen before.
pub const REPLAY_WINDOW: u64 = 1024;

/// A secret of the cluster or of one session.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthKey([u8; 32]);

impl AuthKey {
    /// The key derived from the contents of a key file.
    pub fn from_file_contents(contents: &[u8]) -> Self {
        Self(blake3::derive_key("ringlane cluster key 1", contents))
    }

    /// A key for one purpose, which reveals nothing about this one or its other children.
    pub fn child(&self, purpose: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in purpose {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The tag of the concatenated `parts`.
    pub fn tag(&self, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        parts.iter().for_each(|part| {
            hasher.update(part);
        });
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_BYTES]);
        tag
    }

    /// Whether `tag` is the tag of `parts`, in time that does not depend on where it differs.
    pub fn verifies(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        let right = self.tag(parts);
        tag.len() == TAG_BYTES && right.iter().zip(tag).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(..)")
    }
}

/// Creates the frames of one direction of a session.
#[derive(Debug)]
pub struct Sealer {
    key: Option<AuthKey>,
    sequence: u64,
}

impl Sealer {
    /// Frames under `key`, or unauthenticated ones.
    pub fn new(key: Option<AuthKey>) -> Self {
        Self { key, sequence: 0 }
    }

    /// Begins a frame at the end of `out` and returns its start. The caller appends the body and
    /// then calls [`Sealer::end`].
    pub fn begin(&mut self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        start
    }

    /// Ends the frame that began at `start` and reaches to the end of `out`.
    pub fn end(&mut self, start: usize, out: &mut Vec<u8>) {
        let body_bytes = out.len() - start - HEAD_BYTES;
        assert!(body_bytes <= BODY_BYTES_MAX, "a frame of {body_bytes} bytes");
        self.sequence += 1;
        out[start..start + 4].copy_from_slice(&(body_bytes as u32).to_le_bytes());
        out[start + 4..start + HEAD_BYTES].copy_from_slice(&self.sequence.to_le_bytes());
        if let Some(key) = &self.key {
            let tag = key.tag(&[&out[start..]]);
            out.extend_from_slice(&tag);
        }
    }
}

/// Why a frame was refused. The session is not worth keeping: the peer is broken or an attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFrameError {
    /// The body is longer than [`BODY_BYTES_MAX`].
    TooLong,
    /// The tag is not this session's.
    Forged,
    /// This frame was seen before.
    Replayed,
}

/// The beginning of a connection's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened<'b> {
    /// No complete frame yet.
    Incomplete {
        /// Length of the whole frame, or of its header while that is unknown.
        bytes: usize,
    },
    /// A frame.
    Frame {
        /// Bytes consumed.
        consumed: usize,
        /// Its body.
        body: &'b [u8],
    },
}

/// Verifies the frames of one direction of a session.
#[derive(Debug)]
pub struct Opener {
    key: Option<AuthKey>,
    window: ReplayWindow,
}

impl Opener {
    /// Frames under `key`, or unauthenticated ones.
    pub fn new(key: Option<AuthKey>) -> Self {
        Self { key, window: ReplayWindow::default() }
    }

    /// Reads the frame at the beginning of `input`, which may be anything.
    pub fn open<'b>(&mut self, input: &'b [u8]) -> Result<Opened<'b>, LinkFrameError> {
        let Some(head) = input.first_chunk::<HEAD_BYTES>() else {
            return Ok(Opened::Incomplete { bytes: HEAD_BYTES });
        };
        let body_bytes = u32::from_le_bytes(head[..4].try_into().expect("four bytes")) as usize;
        let sequence = u64::from_le_bytes(head[4..].try_into().expect("eight bytes"));
        if body_bytes > BODY_BYTES_MAX {
            return Err(LinkFrameError::TooLong);
        }
        let sealed = HEAD_BYTES + body_bytes;
        let consumed = sealed + if self.key.is_some() { TAG_BYTES } else { 0 };
        if input.len() < consumed {
            return Ok(Opened::Incomplete { bytes: consumed });
        }
        if let Some(key) = &self.key
            && !key.verifies(&[&input[..sealed]], &input[sealed..consumed])
        {
            return Err(LinkFrameError::Forged);
        }
        if !self.window.accept(sequence) {
            return Err(LinkFrameError::Replayed);
        }
        Ok(Opened::Frame { consumed, body: &input[HEAD_BYTES..sealed] })
    }
}

/// Remembers which sequence numbers have been seen; each is accepted once.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The greatest number seen.
    greatest: u64,
    /// Bit n % window: whether number n, of those at most a window below the greatest, was seen.
    seen: [u64; REPLAY_WINDOW as usize / 64],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { greatest: 0, seen: [0; REPLAY_WINDOW as usize / 64] }
    }
}

impl ReplayWindow {
    /// Whether `sequence` is new, and not too old to tell. Zero never is.
    pub fn accept(&mut self, sequence: u64) -> bool {
        if sequence == 0 || sequence.saturating_add(REPLAY_WINDOW) <= self.greatest {
            return false;
        }
        if sequence > self.greatest {
            // The numbers between were not seen; their bits are still those of a window below.
            let passed = (sequence - self.greatest).min(REPLAY_WINDOW);
            for number in sequence - passed + 1..=sequence {
                *self.word(number) &= !bit(number);
            }
            self.greatest = sequence;
        }
        let first_time = *self.word(sequence) & bit(sequence) == 0;
        *self.word(sequence) |= bit(sequence);
        first_time
    }

    fn word(&mut self, number: u64) -> &mut u64 {
        &mut self.seen[(number % REPLAY_WINDOW) as usize / 64]
    }
}

const fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: &[u8]) -> Option<AuthKey> {
        Some(AuthKey::from_file_contents(name))
    }

    fn frame(sealer: &mut Sealer, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let start = sealer.begin(&mut out);
        out.extend_from_slice(body);
        sealer.end(start, &mut out);
        out
    }

    fn whole<'b>(opener: &mut Opener, input: &'b [u8]) -> &'b [u8] {
        match opener.open(input).unwrap() {
            Opened::Frame { consumed, body } if consumed == input.len() => body,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_frame_arrives_whole_however_it_was_cut() {
        for key in [None, key(b"secret")] {
            let bytes = frame(&mut Sealer::new(key.clone()), b"hello");
            let mut opener = Opener::new(key);
            for cut in 0..bytes.len() {
                assert!(matches!(opener.open(&bytes[..cut]), Ok(Opened::Incomplete { .. })));
            }
            assert_eq!(whole(&mut opener, &bytes), b"hello");
        }
    }

    #[test]
    fn a_frame_counts_once() {
        let mut sealer = Sealer::new(key(b"secret"));
        let mut opener = Opener::new(key(b"secret"));
        let frames: Vec<Vec<u8>> = (0..3).map(|n| frame(&mut sealer, &[n])).collect();
        for n in [2, 0, 1] {
            assert_eq!(whole(&mut opener, &frames[n]), [n as u8]);
        }
        for frame in &frames {
            assert_eq!(opener.open(frame), Err(LinkFrameError::Replayed));
        }
    }

    #[test]
    fn every_changed_bit_is_found_out() {
        let bytes = frame(&mut Sealer::new(key(b"secret")), b"value");
        for bit in 32..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut opener = Opener::new(key(b"secret"));
            assert_eq!(opener.open(&changed), Err(LinkFrameError::Forged), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_of_another_key_is_refused() {
        let bytes = frame(&mut Sealer::new(key(b"one")), b"value");
        assert_eq!(Opener::new(key(b"two")).open(&bytes), Err(LinkFrameError::Forged));
        let child = key(b"one").unwrap().child(&[b"a", b"bc"]);
        assert_ne!(child, key(b"one").unwrap().child(&[b"ab", b"c"]));
        assert_eq!(Opener::new(Some(child)).open(&bytes), Err(LinkFrameError::Forged));
    }

    #[test]
    fn an_endless_frame_is_refused_from_its_head() {
        let mut head = [0xff; HEAD_BYTES];
        head[4..].fill(1);
        assert_eq!(Opener::new(None).open(&head), Err(LinkFrameError::TooLong));
    }

    proptest! {
        #[test]
        fn the_window_accepts_each_recent_number_once(
            steps in proptest::collection::vec(-1500i64..1500, 1..300),
        ) {
            let mut window = ReplayWindow::default();
            let mut seen = std::collections::HashSet::new();
            let mut greatest = 0i64;
            for step in steps {
                let number = (greatest + step).max(0);
                let recent = number > 0 && number + REPLAY_WINDOW as i64 > greatest;
                let expected = recent && !seen.contains(&number);
                prop_assert_eq!(window.accept(number as u64), expected);
                if expected {
                    seen.insert(number);
                    greatest = greatest.max(number);
                }
            }
        }

        #[test]
        fn any_bytes_are_taken_without_panic(bytes: Vec<u8>, keyed: bool) {
            let mut opener = Opener::new(if keyed { key(b"secret") } else { None });
            let _ = opener.open(&bytes);
        }
    }
}
