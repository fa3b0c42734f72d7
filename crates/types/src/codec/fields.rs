//! The fields that requests and answers announce by a bit and often omit.

use super::CodecError;
use super::response::answer;
use crate::time::Deadline;
use crate::wire::{Reader, SliceWriter, Writer};

pub(super) const fn optional(present: bool, bytes: usize) -> usize {
    if present { bytes } else { 0 }
}

pub(super) const fn bit(set: bool, bit: u16) -> u16 {
    if set { bit } else { 0 }
}

pub(super) const fn bit8(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

impl SliceWriter<'_> {
    pub(super) fn optional_u32(&mut self, number: Option<u32>) {
        if let Some(number) = number {
            self.put_u32(number);
        }
    }

    pub(super) fn optional_u64(&mut self, number: Option<u64>) {
        if let Some(number) = number {
            self.put_u64(number);
        }
    }

    pub(super) fn optional_deadline(&mut self, deadline: Option<Deadline>) {
        self.optional_u64(deadline.map(Deadline::as_millis));
    }

    pub(super) fn deadlines(&mut self, after: Deadline, before: Deadline) {
        self.optional_deadline((!after.is_never()).then_some(after));
        self.optional_deadline((before != after).then_some(before));
    }
}

impl Reader<'_> {
    pub(super) fn optional_u32(&mut self, present: bool) -> Result<Option<u32>, CodecError> {
        present.then(|| self.u32()).transpose()
    }

    pub(super) fn optional_u64(&mut self, present: bool) -> Result<Option<u64>, CodecError> {
        present.then(|| self.u64()).transpose()
    }

    pub(super) fn optional_deadline(
        &mut self,
        present: bool,
    ) -> Result<Option<Deadline>, CodecError> {
        Ok(self.optional_u64(present)?.map(Deadline::from_millis))
    }

    pub(super) fn deadlines(&mut self, tag: u8) -> Result<(Deadline, Deadline), CodecError> {
        let after = self.optional_deadline(tag & answer::DEADLINE != 0)?;
        let after = after.unwrap_or(Deadline::NEVER);
        let before = self.optional_deadline(tag & answer::DEADLINE_BEFORE != 0)?;
        Ok((after, before.unwrap_or(after)))
    }
}
