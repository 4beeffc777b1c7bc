//! WAL pages: the 8 KiB unit PostgreSQL writes, and the only place that states who wrote it.
//!
//! ```text
//!  segment   │ page 0          │ page 1        │ page 2
//!            │ long header 40  │ short hdr 24  │ short hdr 24
//!            │ + who, sizes    │ where, TLI    │ …
//! ```
//! Pure: parsing checks only what a header says of itself; that it stands at the right place, in the right file, is for
//! [`super::scan`] to check. Source of truth: `xlog_internal.h`, `XLogReaderValidatePageHeader` in `xlogreader.c`.

use std::fmt;
use std::str::FromStr;

use super::lsn::Lsn;

/// Bytes of the header of every page but a segment's first (`SizeOfXLogShortPHD`).
pub const SHORT_HEADER: u64 = 24;
/// Bytes of the header of a segment's first page (`SizeOfXLogLongPHD`).
pub const LONG_HEADER: u64 = 40;

/// A PostgreSQL major version whose WAL is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PgMajor {
    /// PostgreSQL 13.
    V13,
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

impl PgMajor {
    /// All of them, oldest first.
    pub const ALL: [Self; 6] = [Self::V13, Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The major version whose WAL pages carry `magic` (`XLOG_PAGE_MAGIC`).
    pub fn from_magic(magic: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|major| major.magic() == magic)
    }

    /// The major version of a `server_version_num` such as 150007.
    pub fn from_version_num(num: u32) -> Option<Self> {
        Self::from_number(num / 10_000)
    }

    /// The major version numbered `number`, such as 15.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|major| major.number() == number)
    }

    /// The number people use: 13 to 18.
    pub const fn number(self) -> u32 {
        match self {
            Self::V13 => 13,
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// `XLOG_PAGE_MAGIC` of its WAL pages.
    pub const fn magic(self) -> u16 {
        match self {
            Self::V13 => 0xD106,
            Self::V14 => 0xD10D,
            Self::V15 => 0xD110,
            Self::V16 => 0xD113,
            Self::V17 => 0xD116,
            Self::V18 => 0xD118,
        }
    }
}

impl fmt::Display for PgMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl serde::Serialize for PgMajor {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(self.number())
    }
}

impl<'de> serde::Deserialize<'de> for PgMajor {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u32::deserialize(from)?;
        Self::from_number(number)
            .ok_or_else(|| serde::de::Error::custom(format_args!("PostgreSQL {number} is not supported")))
    }
}

/// The system identifier that initdb gives a cluster. Prints in decimal; JSON holds it as a string, because 64 bits do not
/// fit the numbers of most JSON readers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(u64);

/// Text that is not a system identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a system identifier (a decimal number of at most 20 digits)")]
pub struct SystemIdError(pub String);

impl SystemId {
    /// The identifier `id`.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {}", self.0)
    }
}

impl FromStr for SystemId {
    type Err = SystemIdError;

    /// Accepts what [`SystemId`] prints and nothing else: one identifier has one spelling, since it names a folder.
    fn from_str(text: &str) -> Result<Self, SystemIdError> {
        match text.parse::<u64>() {
            Ok(id) if id.to_string() == text => Ok(Self(id)),
            _ => Err(SystemIdError(text.chars().take(40).collect())),
        }
    }
}

impl serde::Serialize for SystemId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SystemId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The flags of a page (`xlp_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFlags(u16);

impl PageFlags {
    const CONTINUES: u16 = 0x0001;
    const LONG: u16 = 0x0002;
    const REMOVABLE: u16 = 0x0004;
    const OVERWRITES: u16 = 0x0008;

    /// Flags as stored.
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// Flags as stored.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The page opens with the rest of a record (`XLP_FIRST_IS_CONTRECORD`).
    pub const fn continues(self) -> bool {
        self.0 & Self::CONTINUES != 0
    }

    /// The header is a long one (`XLP_LONG_HEADER`).
    pub const fn is_long(self) -> bool {
        self.0 & Self::LONG != 0
    }

    /// A record that should go on here was abandoned after a crash; the page opens with `XLOG_OVERWRITE_CONTRECORD`.
    pub const fn overwrites(self) -> bool {
        self.0 & Self::OVERWRITES != 0
    }

    /// True if no flag is set that PostgreSQL 13 to 18 do not know.
    pub const fn is_known(self) -> bool {
        self.0 & !(Self::CONTINUES | Self::LONG | Self::REMOVABLE | Self::OVERWRITES) == 0
    }
}

/// What only the first page of a segment states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader {
    /// The cluster that wrote it.
    pub system_id: SystemId,
    /// Bytes in a segment of that cluster.
    pub segment_size: u32,
    /// Bytes in a WAL page of that cluster.
    pub page_size: u32,
}

/// The header of one WAL page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// `XLOG_PAGE_MAGIC` of the server that wrote it.
    pub magic: u16,
    /// What the page opens with.
    pub flags: PageFlags,
    /// The timeline it was written on. 0 in a page that was never written.
    pub timeline: u32,
    /// Where the page claims to stand.
    pub address: Lsn,
    /// Bytes of the continued record that are still to come, from this page on.
    pub remaining: u32,
    /// Present if the flags say that the header is long.
    pub long: Option<LongHeader>,
}

/// Too few bytes for the header that the flags announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a WAL page header needs {needed} bytes, {found} are there")]
pub struct PageError {
    /// Bytes needed.
    pub needed: u64,
    /// Bytes given.
    pub found: u64,
}

impl PageHeader {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`PageError`] if `bytes` is shorter than the header.
    pub fn parse(bytes: &[u8]) -> Result<Self, PageError> {
        let needed =
            |needed: u64| PageError { needed, found: u64::try_from(bytes.len()).unwrap_or(u64::MAX) };
        let short: &[u8; 24] = bytes.first_chunk().ok_or_else(|| needed(SHORT_HEADER))?;
        let flags = PageFlags(u16_at(short, 2));
        let long = if flags.is_long() {
            let long: &[u8; 40] = bytes.first_chunk().ok_or_else(|| needed(LONG_HEADER))?;
            Some(LongHeader {
                system_id: SystemId(u64_at(long, 24)),
                segment_size: u32_at(long, 32),
                page_size: u32_at(long, 36),
            })
        } else {
            None
        };
        Ok(Self {
            magic: u16_at(short, 0),
            flags,
            timeline: u32_at(short, 4),
            address: Lsn::new(u64_at(short, 8)),
            remaining: u32_at(short, 16),
            long,
        })
    }
}

/// Little-endian number at `at`; 0 if it does not lie inside `bytes`. For buffers whose length was checked.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u16::from_le_bytes(*b))
}

/// As [`u16_at`], four bytes.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b))
}

/// As [`u16_at`], eight bytes.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_and_number_name_the_same_major() {
        for major in PgMajor::ALL {
            assert_eq!(PgMajor::from_magic(major.magic()), Some(major));
            assert_eq!(PgMajor::from_version_num(major.number() * 10_000 + 7), Some(major));
            assert_eq!(serde_json::to_string(&major).unwrap(), major.to_string());
        }
        assert_eq!((PgMajor::from_magic(0xD121), PgMajor::from_version_num(120_022)), (None, None));
    }

    #[test]
    fn system_identifiers_have_one_spelling() {
        let id: SystemId = "7300000000000000001".parse().unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"7300000000000000001\"");
        for bad in ["", "07", "+7", " 7", "18446744073709551616", "x"] {
            assert!(bad.parse::<SystemId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_header_is_read_once_all_of_it_is_there() {
        let mut bytes = vec![0x10, 0xD1, 0x02, 0, 3, 0, 0, 0];
        bytes.extend(0x1600_0000_u64.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(42_u64.to_le_bytes());
        bytes.extend((16_u32 << 20).to_le_bytes());
        bytes.extend(8192_u32.to_le_bytes());
        let long = LongHeader { system_id: SystemId::new(42), segment_size: 16 << 20, page_size: 8192 };
        let expected = PageHeader {
            magic: 0xD110,
            flags: PageFlags::from_raw(2),
            timeline: 3,
            address: Lsn::new(0x1600_0000),
            remaining: 0,
            long: Some(long),
        };
        assert_eq!(PageHeader::parse(&bytes), Ok(expected));
        assert_eq!(PageHeader::parse(&bytes[..39]), Err(PageError { needed: 40, found: 39 }));
        assert_eq!(PageHeader::parse(&bytes[..23]), Err(PageError { needed: 24, found: 23 }));
        bytes[2] = 0;
        assert_eq!(
            PageHeader::parse(&bytes[..24]),
            Ok(PageHeader { long: None, flags: PageFlags::from_raw(0), ..expected })
        );
    }
}
