//! Encodes and decodes the numbers and byte strings of messages. Little-endian; strings are
//! length-prefixed. Readers accept any bytes and never read past the end.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why bytes are not a valid message. None of them was acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// The message ends inside a field.
    Truncated,
    /// Bytes follow the end of the message.
    Trailing,
    /// A tag, option bit or field value that this build does not know.
    Unknown,
    /// A key that is empty or longer than [`KEY_BYTES_MAX`](crate::request::KEY_BYTES_MAX).
    Key,
}

/// The rest of a message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    /// Reads `bytes` from the beginning.
    pub fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `count` bytes.
    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'b [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next N bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A byte string with a one-byte length prefix.
    #[inline]
    pub fn short(&mut self) -> Result<&'b [u8], CodecError> {
        let count = self.u8()?;
        self.take(count as usize)
    }

    /// A byte string with a four-byte length prefix.
    #[inline]
    pub fn long(&mut self) -> Result<&'b [u8], CodecError> {
        let count = self.u32()?;
        self.take(count as usize)
    }

    /// Non-empty text with a one-byte length prefix.
    pub fn text(&mut self) -> Result<&'b str, CodecError> {
        let text = core::str::from_utf8(self.short()?).map_err(|_| CodecError::Unknown)?;
        if text.is_empty() { Err(CodecError::Unknown) } else { Ok(text) }
    }

    /// An address.
    pub fn address(&mut self) -> Result<SocketAddr, CodecError> {
        let ip = match self.u8()? {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(CodecError::Unknown),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// The whole rest.
    #[inline]
    pub fn rest(&mut self) -> &'b [u8] {
        core::mem::take(&mut self.rest)
    }

    /// Number of remaining bytes.
    #[inline]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Fails unless everything has been read.
    #[inline]
    pub fn end(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::Trailing) }
    }
}

/// Output for messages.
pub trait Writer {
    /// Appends bytes.
    fn put(&mut self, bytes: &[u8]);

    /// One byte.
    #[inline]
    fn put_u8(&mut self, number: u8) {
        self.put(&[number]);
    }

    /// Two bytes.
    #[inline]
    fn put_u16(&mut self, number: u16) {
        self.put(&number.to_le_bytes());
    }

    /// Four bytes.
    #[inline]
    fn put_u32(&mut self, number: u32) {
        self.put(&number.to_le_bytes());
    }

    /// Eight bytes.
    #[inline]
    fn put_u64(&mut self, number: u64) {
        self.put(&number.to_le_bytes());
    }

    /// A byte string of at most 255 bytes, with its length prefix.
    #[inline]
    fn put_short(&mut self, bytes: &[u8]) {
        self.put_u8(u8::try_from(bytes.len()).expect("a short string has at most 255 bytes"));
        self.put(bytes);
    }

    /// A byte string with a four-byte length prefix.
    #[inline]
    fn put_long(&mut self, bytes: &[u8]) {
        self.put_u32(u32::try_from(bytes.len()).expect("a string has less than 4 GiB"));
        self.put(bytes);
    }

    /// An address.
    fn put_address(&mut self, address: SocketAddr) {
        match address.ip() {
            IpAddr::V4(ip) => {
                self.put_u8(4);
                self.put(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.put_u8(6);
                self.put(&ip.octets());
            }
        }
        self.put_u16(address.port());
    }
}

impl Writer for Vec<u8> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Fills a slice from its front: for a message whose length was computed before it is written.
#[derive(Debug)]
pub struct SliceWriter<'o> {
    out: &'o mut [u8],
}

impl<'o> SliceWriter<'o> {
    /// Fills `out`, which is exactly as long as the message.
    #[inline]
    pub fn new(out: &'o mut [u8]) -> Self {
        Self { out }
    }

    /// The whole slice must be filled.
    ///
    /// # Panics
    /// When it is not.
    #[inline]
    pub fn finish(self) {
        assert!(self.out.is_empty(), "{} bytes left over in the slot", self.out.len());
    }
}

impl Writer for SliceWriter<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        let (front, rest) = std::mem::take(&mut self.out).split_at_mut(bytes.len());
        front.copy_from_slice(bytes);
        self.out = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let addresses: [SocketAddr; 2] =
            ["127.0.0.2:7".parse().unwrap(), "[::1]:65535".parse().unwrap()];
        let mut bytes = Vec::new();
        bytes.put_u8(1);
        bytes.put_u16(2);
        bytes.put_u32(3);
        bytes.put_u64(4);
        bytes.put_short(b"short");
        bytes.put_long(b"long");
        addresses.iter().for_each(|&address| bytes.put_address(address));
        bytes.put_short("größe".as_bytes());
        let mut reader = Reader::new(&bytes);
        assert_eq!((reader.u8(), reader.u16(), reader.u32(), reader.u64()), {
            (Ok(1), Ok(2), Ok(3), Ok(4))
        });
        assert_eq!((reader.short(), reader.long()), (Ok(&b"short"[..]), Ok(&b"long"[..])));
        assert_eq!(addresses.map(|_| reader.address().unwrap()), addresses);
        assert_eq!(reader.text(), Ok("größe"));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn a_length_beyond_the_end_is_malformed() {
        assert_eq!(Reader::new(&[5, 1, 2]).short(), Err(CodecError::Truncated));
        assert_eq!(Reader::new(&[0xff; 8]).long(), Err(CodecError::Truncated));
        assert_eq!(Reader::new(&[0]).text(), Err(CodecError::Unknown));
        assert_eq!(Reader::new(&[1, 0xff]).text(), Err(CodecError::Unknown));
        assert_eq!(Reader::new(&[5, 0, 0, 0, 0, 0, 0]).address(), Err(CodecError::Unknown));
        assert_eq!(Reader::new(&[0]).end(), Err(CodecError::Trailing));
    }
}
