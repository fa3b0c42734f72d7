//! Lines and tokens: finds the end of a line and splits it at spaces.
//!
//! Only the space separates tokens and only `\n` ends a line, so a key may hold any other byte.
//! Keys are short, so [`first_low`] walks eight bytes at a time in plain code: the setup of a
//! vectorised search costs more than it saves on twenty bytes.

/// Position of the first space or newline, if there is one.
#[inline]
pub(crate) fn token_end(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + first_low(&bytes[from..])?;
        if matches!(bytes[at], b' ' | b'\n') {
            return Some(at);
        }
        from = at + 1;
    }
}

/// Position of the first byte up to and including the space character: a separator, or a control
/// byte, which is rare except as the `\r` of a line's end.
#[inline]
pub(crate) fn first_low(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let low = low_bytes(word);
        if low != 0 {
            return Some(i * 8 + low.trailing_zeros() as usize / 8);
        }
    }
    // The last word overlaps bytes already known not to match.
    match bytes.last_chunk::<8>() {
        Some(word) => {
            let low = low_bytes(word);
            (low != 0).then(|| bytes.len() - 8 + low.trailing_zeros() as usize / 8)
        }
        None => rest.iter().position(|&byte| byte <= b' '),
    }
}

/// The top bit of the lowest matching byte; bits above it may be wrong, which does not matter to a
/// search for the first.
#[inline]
const fn low_bytes(word: &[u8; 8]) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const ABOVE: u64 = u64::from_le_bytes([b' ' + 1; 8]);
    let word = u64::from_le_bytes(*word);
    word.wrapping_sub(ABOVE) & !word & (ONES << 7)
}

/// A line may be megabytes of spaces: they are scanned in blocks of this size.
const SPACES: [u8; 32] = [b' '; 32];

/// Number of leading spaces of `text`.
#[inline]
pub(crate) fn leading_spaces(text: &[u8]) -> usize {
    match text {
        [b' ', b' ', ..] => many_leading_spaces(text),
        [b' ', ..] => 1,
        _ => 0,
    }
}

#[inline(never)]
fn many_leading_spaces(text: &[u8]) -> usize {
    let (chunks, _) = text.as_chunks();
    let at = chunks.iter().take_while(|&chunk| *chunk == SPACES).count() * SPACES.len();
    at + text[at..].iter().take_while(|&&byte| byte == b' ').count()
}

/// Number of trailing spaces of `text`.
#[inline]
fn trailing_spaces(text: &[u8]) -> usize {
    if text.last() == Some(&b' ') { many_trailing_spaces(text) } else { 0 }
}

#[inline(never)]
fn many_trailing_spaces(text: &[u8]) -> usize {
    let (_, chunks) = text.as_rchunks();
    let count = chunks.iter().rev().take_while(|&chunk| *chunk == SPACES).count() * SPACES.len();
    let rest = &text[..text.len() - count];
    count + rest.iter().rev().take_while(|&&byte| byte == b' ').count()
}

/// A line that has wholly arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'b> {
    /// Its text, without its ending.
    pub text: &'b [u8],
    /// Its length in the input, including its ending.
    pub bytes: usize,
}

impl<'b> Line<'b> {
    /// The line of `input` whose `\n` is at `newline`. One `\r` before it belongs to the ending.
    #[inline]
    pub(crate) fn new(input: &'b [u8], newline: usize) -> Self {
        let text = &input[..newline];
        Self { text: text.strip_suffix(b"\r").unwrap_or(text), bytes: newline + 1 }
    }
}

/// The tokens of a line, one by one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens<'b> {
    rest: &'b [u8],
}

impl<'b> Tokens<'b> {
    /// The tokens of `text`, which is a line without its ending or the rest of one.
    pub(crate) fn new(text: &'b [u8]) -> Self {
        Self { rest: text }
    }

    /// Bytes that have not been taken yet, spaces included.
    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    /// The remaining text, without surrounding spaces.
    pub(crate) fn rest(&self) -> &'b [u8] {
        let rest = &self.rest[leading_spaces(self.rest)..];
        &rest[..rest.len() - trailing_spaces(rest)]
    }

    /// The last token that has not been taken yet, without taking it.
    pub(crate) fn last(&self) -> Option<&'b [u8]> {
        let rest = self.rest();
        let start = rest.iter().rposition(|&b| b == b' ').map_or(0, |space| space + 1);
        (!rest.is_empty()).then(|| &rest[start..])
    }

    /// Whether the last token is exactly `noreply`.
    #[inline]
    pub(crate) fn end_in_noreply(&self) -> bool {
        !self.rest.is_empty() && self.last() == Some(b"noreply")
    }

    /// Takes exactly `N` tokens; `None` if there are fewer, or more.
    pub(crate) fn exactly<const N: usize>(mut self) -> Option<[&'b [u8]; N]> {
        let mut tokens = [&b""[..]; N];
        for token in &mut tokens {
            *token = self.next()?;
        }
        self.next().is_none().then_some(tokens)
    }
}

impl<'b> Iterator for Tokens<'b> {
    type Item = &'b [u8];

    #[inline]
    fn next(&mut self) -> Option<&'b [u8]> {
        loop {
            match self.rest {
                [] => return None,
                [b' ', rest @ ..] => self.rest = rest,
                _ => break,
            }
        }
        // Inside a line there is no newline, so the first of the two is a space.
        let end = token_end(self.rest).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_of_spaces_separate_like_one_and_tabs_do_not() {
        let tokens: Vec<_> = Tokens::new(b"  a  b\tc   \x00\xff ").collect();
        assert_eq!(tokens, [&b"a"[..], b"b\tc", b"\x00\xff"]);
        assert_eq!(Tokens::new(b"   ").next(), None);
    }

    #[test]
    fn only_one_carriage_return_belongs_to_the_ending() {
        let line = Line::new(b"a\r\r\nrest", 3);
        assert_eq!((line.text, line.bytes), (&b"a\r"[..], 4));
        let line = Line::new(b"a\n", 1);
        assert_eq!((line.text, line.bytes), (&b"a"[..], 2));
    }

    #[test]
    fn the_last_token_ignores_trailing_spaces() {
        assert_eq!(Tokens::new(b"x noreply  ").last(), Some(&b"noreply"[..]));
        assert_eq!(Tokens::new(b"  ").last(), None);
        assert!(!Tokens::new(b"x noreplyy").end_in_noreply());
        assert!(!Tokens::new(b"x NOREPLY").end_in_noreply());
    }

    proptest! {
        #[test]
        fn spaces_around_tokens_are_counted_however_many_they_are(
            before in 0usize..200, after in 0usize..200, token in "[a-z ]{0,3}",
        ) {
            let text = format!("{}{token}{}", " ".repeat(before), " ".repeat(after));
            let bytes = text.as_bytes();
            prop_assert_eq!(leading_spaces(bytes), text.len() - text.trim_start().len());
            prop_assert_eq!(trailing_spaces(bytes), text.len() - text.trim_end().len());
            prop_assert_eq!(Tokens::new(bytes).rest(), text.trim().as_bytes());
        }

        #[test]
        fn token_end_is_the_first_space_or_newline(
            bytes in proptest::collection::vec(
                prop_oneof![4 => any::<u8>(), 1 => Just(b' '), 1 => Just(b'\n'), 1 => Just(b'!'),
                    1 => Just(0x0b)], 0..40)
        ) {
            let expected = bytes.iter().position(|&b| b == b' ' || b == b'\n');
            prop_assert_eq!(token_end(&bytes), expected);
            prop_assert_eq!(first_low(&bytes), bytes.iter().position(|&byte| byte <= b' '));
        }
    }
}
