//! Fields off the front of bytes. Owns the bounds; knows no event and no table.
//!
//! All numbers in the binlog are little-endian, but for a few that are kept in the order in
//! which the storage engine sorts them: `temporal` and `decimal` read those themselves.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

/// Bytes that are not what the binlog's format says. Does not heal: the same bytes come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what} (at byte {at} of it)")]
pub struct MalformedError {
    /// What was read.
    pub what: &'static str,
    /// How many bytes of it had been read.
    pub at: usize,
}

/// What is left of some bytes. After an error it stands where it stood before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    length: usize,
    what: &'static str,
}

impl<'a> Cursor<'a> {
    /// `what` names the bytes in errors.
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, length: bytes.len(), what }
    }

    /// The error for what can be read here but makes no sense.
    pub(crate) fn malformed(&self) -> MalformedError {
        MalformedError { what: self.what, at: self.length - self.rest.len() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// What was taken since, by a copy of this.
    pub(crate) fn until(&self, later: &Self) -> &'a [u8] {
        self.rest.get(..self.rest.len().saturating_sub(later.rest.len())).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], MalformedError> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(self.malformed());
        };
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], MalformedError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.malformed());
        };
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, MalformedError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, MalformedError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u24(&mut self) -> Result<u32, MalformedError> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_le_bytes([a, b, c, 0]))
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, MalformedError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A table's number, in TABLE_MAP and rows events.
    pub(crate) fn u48(&mut self) -> Result<u64, MalformedError> {
        let [a, b, c, d, e, f] = self.array()?;
        Ok(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// A length as the protocol packs it (`net_field_length`): one byte up to 250, else a mark
    /// and two, three or eight bytes. 251 is the protocol's NULL and 255 an error: no lengths.
    pub(crate) fn packed(&mut self) -> Result<usize, MalformedError> {
        let mut ahead = *self;
        let length = match ahead.u8()? {
            short @ 0..=250 => usize::from(short),
            252 => usize::from(ahead.u16()?),
            253 => self.narrow(u64::from(ahead.u24()?))?,
            254 => self.narrow(u64::from_le_bytes(ahead.array()?))?,
            251 | 255 => return Err(self.malformed()),
        };
        *self = ahead;
        Ok(length)
    }

    /// A packed length and as many bytes.
    pub(crate) fn packed_bytes(&mut self) -> Result<&'a [u8], MalformedError> {
        let mut ahead = *self;
        let length = ahead.packed()?;
        let bytes = ahead.take(length)?;
        *self = ahead;
        Ok(bytes)
    }

    fn narrow(&self, length: u64) -> Result<usize, MalformedError> {
        usize::try_from(length).map_err(|_| self.malformed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_lengths_are_read_in_all_their_widths() {
        let cases: [(&[u8], usize); 5] = [
            (&[0], 0),
            (&[250], 250),
            (&[252, 251, 0], 251),
            (&[253, 0, 0, 1], 65_536),
            (&[254, 0, 0, 0, 1, 0, 0, 0, 0], 16_777_216),
        ];
        for (bytes, length) in cases {
            let mut cursor = Cursor::new(bytes, "length");
            assert_eq!(cursor.packed(), Ok(length));
            assert!(cursor.is_empty());
            for end in 0..bytes.len() {
                let mut short = Cursor::new(&bytes[..end], "length");
                assert!(short.packed().is_err());
                assert_eq!(short.remaining(), end, "an error moves nothing");
            }
        }
        assert!(Cursor::new(&[251], "length").packed().is_err());
        assert!(Cursor::new(&[255], "length").packed().is_err());
    }

    #[test]
    fn an_error_says_where() {
        let mut cursor = Cursor::new(b"\x01\x02\x03", "event");
        cursor.u16().unwrap();
        let error = cursor.u32().unwrap_err();
        assert_eq!(error, MalformedError { what: "event", at: 2 });
        assert_eq!(error.to_string(), "malformed event (at byte 2 of it)");
        assert_eq!(cursor.take(1), Ok(&b"\x03"[..]));
    }
}
