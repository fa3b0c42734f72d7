//! Writes a slot from its front, and reads fields from the front of a message.

use super::CodecError;
use super::response::answer;
use crate::time::Deadline;

pub const fn optional(present: bool, bytes: usize) -> usize {
    if present { bytes } else { 0 }
}

pub const fn bit(set: bool, bit: u16) -> u16 {
    if set { bit } else { 0 }
}

pub const fn bit8(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

/// Fills a slice from its front.
pub struct Writer<'o> {
    pub out: &'o mut [u8],
}

impl Writer<'_> {
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        let (front, rest) = std::mem::take(&mut self.out).split_at_mut(bytes.len());
        front.copy_from_slice(bytes);
        self.out = rest;
    }

    #[inline]
    pub fn array<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes(&bytes);
    }

    pub fn u16(&mut self, number: u16) {
        self.array(number.to_le_bytes());
    }

    pub fn u32(&mut self, number: u32) {
        self.array(number.to_le_bytes());
    }

    pub fn u64(&mut self, number: u64) {
        self.array(number.to_le_bytes());
    }

    pub fn optional_u32(&mut self, number: Option<u32>) {
        if let Some(number) = number {
            self.u32(number);
        }
    }

    pub fn optional_u64(&mut self, number: Option<u64>) {
        if let Some(number) = number {
            self.u64(number);
        }
    }

    pub fn optional_deadline(&mut self, deadline: Option<Deadline>) {
        self.optional_u64(deadline.map(Deadline::as_millis));
    }

    pub fn deadlines(&mut self, after: Deadline, before: Deadline) {
        self.optional_deadline((!after.is_never()).then_some(after));
        self.optional_deadline((before != after).then_some(before));
    }

    pub fn finish(self) {
        assert!(self.out.is_empty(), "{} bytes left over in the slot", self.out.len());
    }
}

/// Takes fields from the front of a message.
pub struct Reader<'b> {
    pub rest: &'b [u8],
}

impl<'b> Reader<'b> {
    #[inline]
    pub fn bytes(&mut self, count: usize) -> Result<&'b [u8], CodecError> {
        let (front, rest) = self.rest.split_at_checked(count).ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(front)
    }

    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (front, rest) = self.rest.split_first_chunk().ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(*front)
    }

    pub fn u16(&mut self) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn optional_u32(&mut self, present: bool) -> Result<Option<u32>, CodecError> {
        present.then(|| self.u32()).transpose()
    }

    pub fn optional_u64(&mut self, present: bool) -> Result<Option<u64>, CodecError> {
        present.then(|| self.u64()).transpose()
    }

    pub fn optional_deadline(&mut self, present: bool) -> Result<Option<Deadline>, CodecError> {
        Ok(self.optional_u64(present)?.map(Deadline::from_millis))
    }

    pub fn deadlines(&mut self, tag: u8) -> Result<(Deadline, Deadline), CodecError> {
        let after = self.optional_deadline(tag & answer::DEADLINE != 0)?;
        let after = after.unwrap_or(Deadline::NEVER);
        let before = self.optional_deadline(tag & answer::DEADLINE_BEFORE != 0)?;
        Ok((after, before.unwrap_or(after)))
    }

    pub fn remainder(&mut self) -> &'b [u8] {
        std::mem::take(&mut self.rest)
    }

    pub fn finish(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::Trailing) }
    }
}
