//! Feeds a decoder in pieces, for tests: however a connection's bytes are split, they must yield
//! the same requests, and every step must consume some of them.

use bumpalo::Bump;

use super::{Context, Decoder, Limits, Step};
use ringlane_types::hash::HashSecret;
use ringlane_types::request::{Body, Operation, Request};
use ringlane_types::time::Instant;

/// The time at which tests of decoders run.
pub(crate) const NOW: Instant = Instant::from_millis(1_700_000_000_000);

/// A description of all steps of `decoder` for `input`. `piece` is the number of bytes that arrive
/// at a time; bytes to be skipped or streamed into an item arrive too. Ends with the input, or with
/// a step that closes. Only for protocols whose data blocks have no trailer.
pub(crate) fn asked(
    mut decoder: Decoder,
    limits: &Limits,
    input: &[u8],
    piece: usize,
) -> Vec<String> {
    let scratch = Bump::new();
    let context =
        Context { limits, now: NOW, hash_secret: &HashSecret::of_seed(1), scratch: &scratch };
    let (mut seen, mut start, mut end) = (Vec::new(), 0, 0);
    loop {
        if start >= end {
            if end == input.len() {
                return seen;
            }
            end = (end + piece).min(input.len());
            continue;
        }
        let before = start;
        match decoder.next(&input[start..end], &context) {
            Step::Incomplete => {
                if end == input.len() {
                    return seen;
                }
                end = (end + piece).min(input.len());
                continue;
            }
            Step::Close => {
                seen.push("close".to_string());
                return seen;
            }
            Step::Request { consumed, request, reply, skip } => {
                seen.push(format!("{} {reply:?}", described(&request)));
                start += consumed + usize::try_from(skip).expect("64 bits");
            }
            Step::StoreHeader { consumed, mut request, reply, value_bytes, trailer_bytes } => {
                assert_eq!(trailer_bytes, 0);
                start += consumed;
                let Some(value) = input.get(start..start + value_bytes as usize) else {
                    return seen;
                };
                // A value that is split off and one that arrived whole are the same store.
                if let Operation::Store(store) = &mut request.operation {
                    store.value = Body::Bytes(value);
                }
                seen.push(format!("{} {reply:?}", described(&request)));
                start += value.len();
            }
            Step::Answer { consumed, answer, skip } => {
                seen.push(format!("{answer:?}"));
                start += consumed + usize::try_from(skip).expect("64 bits");
            }
            Step::Admin { consumed, command, reply } => {
                seen.push(format!("{command:?} {reply:?}"));
                start += consumed;
            }
        }
        assert!(start > before, "no progress at {start} of {end}");
    }
}

fn described(request: &Request<'_>) -> String {
    format!("{} {:?}", request.key.escape_ascii(), request.operation)
}
