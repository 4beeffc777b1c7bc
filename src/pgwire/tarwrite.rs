//! Headers of tar archives that we write ourselves, readable by GNU tar and every other tar.
//!
//! Plain ustar as PostgreSQL writes it (`src/port/tar.c`); a path or link target of more than 99 bytes is carried by a GNU
//! long-name entry before the member; a number too large for octal is stored in base 256. Pure: the caller writes the header, the
//! data, [`padding`] zero bytes, and [`END`] after the last member.

use super::tar::{BLOCK, Member, MemberKind, TarError, checksum, padding};

/// The two zero blocks that end an archive.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Longest text a name field holds with its closing zero byte, which not every reader does without.
const FIELD: usize = 99;

/// Longest name that is written at all (`PATH_MAX` of Linux).
const LONGEST: usize = 4096;

/// The header of `member`: one block, or more if a name is long.
///
/// # Errors
/// [`TarError::Unwritable`] for an empty, absolute or overlong path, one with `..`, a zero byte or a trailing `/`.
pub fn header(member: &Member) -> Result<Vec<u8>, TarError> {
    check_path(&member.path)?;
    let mut name = member.path.clone();
    let (flag, size, link): (u8, u64, &[u8]) = match &member.kind {
        MemberKind::File { size } => (b'0', *size, b""),
        MemberKind::Directory => {
            name.push(b'/');
            (b'5', 0, b"")
        }
        MemberKind::Symlink { target } => {
            check_text(&member.path, target)?;
            (b'2', 0, target)
        }
    };
    let mut blocks = Vec::with_capacity(BLOCK);
    long_name(b'K', link, &mut blocks);
    long_name(b'L', &name, &mut blocks);
    blocks.extend_from_slice(&block(flag, &name, link, size, member));
    Ok(blocks)
}

/// A GNU entry whose data is the name, closed by a zero byte; nothing if the name fits its field.
fn long_name(flag: u8, name: &[u8], out: &mut Vec<u8>) {
    if name.len() <= FIELD {
        return;
    }
    let size = u64::try_from(name.len()).unwrap_or(u64::MAX).saturating_add(1);
    let member = Member { path: Vec::new(), kind: MemberKind::Directory, mode: 0, uid: 0, gid: 0, mtime: 0 };
    out.extend_from_slice(&block(flag, b"././@LongLink", b"", size, &member));
    out.extend_from_slice(name);
    let zeros = usize::try_from(padding(size)).unwrap_or(0).saturating_add(1);
    out.resize(out.len().saturating_add(zeros), 0);
}

fn block(flag: u8, name: &[u8], link: &[u8], size: u64, member: &Member) -> [u8; BLOCK] {
    let mut block = [0_u8; BLOCK];
    put(&mut block, 0, FIELD, name);
    number(&mut block, 100, 8, u64::from(member.mode & 0o7777));
    number(&mut block, 108, 8, u64::from(member.uid));
    number(&mut block, 116, 8, u64::from(member.gid));
    number(&mut block, 124, 12, size);
    number(&mut block, 136, 12, member.mtime);
    put(&mut block, 156, 1, &[flag]);
    put(&mut block, 157, FIELD, link);
    put(&mut block, 257, 8, b"ustar\x0000");
    number(&mut block, 329, 8, 0);
    number(&mut block, 337, 8, 0);
    let sum = format!("{:06o}\0 ", checksum(&block));
    put(&mut block, 148, 8, sum.as_bytes());
    block
}

/// Copies `value`, cut to `room` bytes, to `from`.
fn put(block: &mut [u8; BLOCK], from: usize, room: usize, value: &[u8]) {
    let field = block.iter_mut().skip(from).take(room);
    field.zip(value).for_each(|(to, byte)| *to = *byte);
}

/// Octal with a closing space if it fits, else the sign byte 0x80 and the number in big-endian order.
fn number(block: &mut [u8; BLOCK], from: usize, room: usize, value: u64) {
    let digits = room.saturating_sub(1);
    let text = format!("{value:0digits$o} ");
    if text.len() <= room {
        return put(block, from, room, text.as_bytes());
    }
    let bytes = value.to_be_bytes();
    let zeros = room.saturating_sub(bytes.len()).saturating_sub(1);
    let low = bytes.len().saturating_sub(digits); // a field of 8 bytes holds the low 7; its values are 32 bits wide
    put(block, from, 1, &[0x80]);
    let start = from.saturating_add(1).saturating_add(zeros);
    put(block, start, digits, bytes.get(low..).unwrap_or_default());
}

fn check_path(path: &[u8]) -> Result<(), TarError> {
    check_text(path, path)?;
    let parts_are_names = path.split(|&b| b == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
    if parts_are_names { Ok(()) } else { Err(unwritable(path, "it is not a plain relative path")) }
}

fn check_text(path: &[u8], text: &[u8]) -> Result<(), TarError> {
    match text {
        [] => Err(unwritable(path, "a name is empty")),
        _ if text.contains(&0) => Err(unwritable(path, "a name holds a zero byte")),
        _ if text.len() > LONGEST => Err(unwritable(path, "a name is longer than 4096 bytes")),
        _ => Ok(()),
    }
}

fn unwritable(path: &[u8], reason: &'static str) -> TarError {
    TarError::Unwritable { path: String::from_utf8_lossy(path).into_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgwire::tar::parse_header;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn file(path: &str, size: u64) -> Member {
        let kind = MemberKind::File { size };
        Member { path: path.into(), kind, mode: 0o600, uid: 0, gid: 0, mtime: 1_760_696_400 }
    }

    fn listed_by_gnu_tar(archive: &[u8]) -> String {
        let mut at = tempfile::NamedTempFile::new().unwrap();
        at.write_all(archive).unwrap();
        let run = std::process::Command::new("tar")
            .args(["--numeric-owner", "--utc", "--full-time", "-tvf"])
            .arg(at.path())
            .output()
            .unwrap();
        assert!(run.status.success() && run.stderr.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    }

    #[test]
    fn gnu_tar_lists_our_members_long_names_included() {
        let long = format!("{}/{}", "d".repeat(100), "f".repeat(49));
        let members = [
            Member { kind: MemberKind::Directory, mode: 0o700, ..file("base", 0) },
            Member { uid: 101, gid: 3_000_000, ..file("base/1", 5) },
            file(&long, 0),
            Member {
                kind: MemberKind::Symlink { target: long.clone().into() },
                mode: 0o777,
                ..file("link", 0)
            },
        ];
        let mut archive = Vec::new();
        for member in &members {
            archive.extend(header(member).unwrap());
            if let MemberKind::File { size: 5 } = member.kind {
                archive.extend(b"12345");
                archive.extend(vec![0; usize::try_from(padding(5)).unwrap()]);
            }
        }
        archive.extend(END);
        assert_eq!(long.len(), 150);
        let listing = listed_by_gnu_tar(&archive);
        let lines: Vec<Vec<&str>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["drwx------", "0/0", "0", "2025-10-17", "10:20:00", "base/"]);
        assert_eq!(lines[1], ["-rw-------", "101/3000000", "5", "2025-10-17", "10:20:00", "base/1"]);
        assert_eq!(lines[2], ["-rw-------", "0/0", "0", "2025-10-17", "10:20:00", &long]);
        assert_eq!(lines[3][5..], ["link", "->", &long]);
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn what_could_leave_the_target_is_not_written() {
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\0b"] {
            assert!(header(&file(bad, 0)).is_err(), "{bad:?} was accepted");
        }
        assert!(header(&file(&"x".repeat(LONGEST + 1), 0)).is_err());
    }

    proptest! {
        #[test]
        fn what_we_write_we_read(
            path in "[a-z0-9_.]{1,8}x(/y[a-z0-9]{1,20}){0,3}",
            (size, mtime) in (0..=u64::MAX >> 1, 0..=u64::MAX),
            (mode, uid, gid) in (0_u32..0o10000, any::<u32>(), any::<u32>()),
        ) {
            let member = Member { path: path.into(), kind: MemberKind::File { size }, mode, uid, gid, mtime };
            let block = header(&member).unwrap();
            prop_assert_eq!(parse_header(block.first_chunk().unwrap(), 0), Ok(member));
        }
    }
}
