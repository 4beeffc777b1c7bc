//! The tar reader against archives of other programs, cut at every place, and against archives that are wrong.
//!
//! Oracles: the `tar` crate and GNU tar as writers, our own headers for what neither of them writes. Each refused archive differs
//! from an accepted one in a single field, so that the named error has one cause.

use super::*;
use crate::pgwire::tarwrite;
use proptest::prelude::*;

/// A member with its data put together; fails if data and size differ.
type Whole = (Member, Vec<u8>);

fn read(archive: &[u8], cuts: &[usize]) -> Result<(Vec<Whole>, TarEnd), TarError> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (archive.len() + 1)).collect();
    cuts.extend([0, archive.len()]);
    cuts.sort_unstable();
    let (mut reader, mut members, mut open) = (TarReader::new(), Vec::<Whole>::new(), false);
    for pair in cuts.windows(2) {
        reader.push(Bytes::copy_from_slice(&archive[pair[0]..pair[1]]));
        while let Some(item) = reader.next()? {
            match item {
                TarItem::Member(member) => {
                    assert!(!open);
                    open = true;
                    members.push((member, Vec::new()));
                }
                TarItem::Data(data) => {
                    assert!(open && !data.is_empty());
                    members.last_mut().unwrap().1.extend_from_slice(&data);
                }
                TarItem::MemberEnd => open = !std::mem::replace(&mut open, false),
            }
        }
    }
    let end = reader.finish()?;
    assert!(!open);
    for (member, data) in &members {
        let size = if let MemberKind::File { size } = member.kind { size } else { 0 };
        assert_eq!(size, data.len() as u64, "{member:?}");
    }
    Ok((members, end))
}

fn member(path: &str, kind: MemberKind) -> Member {
    Member { path: path.into(), kind, mode: 0o640, uid: 7, gid: 8, mtime: 9 }
}

fn archive_of(members: &[Whole], end: TarEnd) -> Vec<u8> {
    let mut archive = Vec::new();
    for (member, data) in members {
        archive.extend(tarwrite::header(member).unwrap());
        archive.extend(data);
        archive.resize(archive.len() + usize::try_from(padding(data.len() as u64)).unwrap(), 0);
    }
    if end == TarEnd::Terminated {
        archive.extend(tarwrite::END);
    }
    archive
}

/// One block with a field overwritten and the checksum made right again.
fn block_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut block = tarwrite::header(&member("a", MemberKind::File { size: 0 })).unwrap();
    block[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = checksum(block.first_chunk().unwrap());
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn refusal(at: usize, bytes: &[u8]) -> String {
    read(&block_with(at, bytes), &[]).unwrap_err().to_string()
}

#[test]
fn names_of_postgresql_are_made_plain() {
    let directory = |name: &[u8]| {
        let mut block = block_with(156, b"5");
        block[..100].fill(0);
        block[..name.len()].copy_from_slice(name);
        let sum = checksum(block.first_chunk().unwrap());
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        read(&block, &[]).unwrap().0.remove(0).0.path
    };
    assert_eq!(directory(b"pg_wal/"), b"pg_wal");
    assert_eq!(directory(b"./pg_wal/archive_status/"), b"pg_wal/archive_status");
    assert_eq!(directory(b"pg_\xff/"), b"pg_\xff");
}

#[test]
fn paths_that_lead_elsewhere_are_refused_by_name() {
    for (name, reason) in [
        (&b"/etc/passwd\0"[..], "absolute"),
        (b"../x\0", "leads out"),
        (b"a/../../x\0", "leads out"),
        (b".//x\0", "empty part"),
        (b"a//b\0", "empty part"),
        (b"a/./b\0", "empty part"),
        (b"a/\0", "empty part"),
        (b"./\0", "names nothing"),
        (b"\0", "names nothing"),
    ] {
        let message = refusal(0, name);
        let shown = String::from_utf8_lossy(text(name)).into_owned();
        assert!(message.contains(reason) && message.contains(&shown), "{message}");
    }
}

#[test]
fn kinds_that_postgresql_does_not_write_are_refused_by_name() {
    for (flag, word) in [
        (b"1", "hard link"),
        (b"3", "device"),
        (b"6", "pipe"),
        (b"x", "pax"),
        (b"g", "pax"),
        (b"L", "long-name"),
        (b"S", "sparse"),
        (b"Z", "0x5a"),
        (b"2", "without a target"),
    ] {
        let message = refusal(156, flag);
        assert!(message.contains(word) && message.contains("\"a\""), "{message}");
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    for (at, field) in [
        (124, &b"0000000008 "[..]),
        (124, b"1 1"),
        (124, b"-1"),
        (124, b"\xff\xff"),
        (108, b"9"),
        (100, b"x"),
    ] {
        assert!(refusal(at, field).contains("not a number"), "{field:?} at {at}");
    }
    let huge = [&[0x80_u8][..], &[0xff; 11]].concat();
    assert!(refusal(124, &huge).contains("the size of tar member \"a\""));
    let beyond_i64 = [&[0x80_u8, 0, 0, 0][..], &[0xff; 8]].concat();
    assert!(refusal(124, &beyond_i64).contains("the size of tar member \"a\""));
}

#[test]
fn a_flipped_bit_in_a_header_is_noticed() {
    let good = archive_of(&[(member("base/1", MemberKind::File { size: 0 }), vec![])], TarEnd::Bare);
    for at in 0..BLOCK {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        // A bit of the checksum's own field can turn a blank into another blank; everywhere else the sum must differ.
        assert!(read(&bad, &[]).is_err() || (148..156).contains(&at), "byte {at}");
    }
}

#[test]
fn sizes_of_eight_gib_and_more_are_read_in_base_256() {
    let size = 8 << 30;
    let block = tarwrite::header(&member("big", MemberKind::File { size })).unwrap();
    assert_eq!(block[124], 0x80);
    assert_eq!(parse_header(block.first_chunk().unwrap(), 0).unwrap().kind, MemberKind::File { size });
}

#[test]
fn the_end_of_an_archive_is_told_from_its_loss() {
    let members = [(member("a", MemberKind::File { size: 3 }), b"abc".to_vec())];
    let (bare, whole) = (archive_of(&members, TarEnd::Bare), archive_of(&members, TarEnd::Terminated));
    assert_eq!(read(&bare, &[]).unwrap().1, TarEnd::Bare);
    assert_eq!(read(&whole, &[]).unwrap().1, TarEnd::Terminated);
    let record = [&whole[..], &[0; 9000 / BLOCK * BLOCK]].concat();
    assert_eq!(read(&record, &[]).unwrap().1, TarEnd::Terminated, "GNU tar fills up to 10 KiB");
    for cut in (1..BLOCK).chain(BLOCK..2 * BLOCK).chain(bare.len() + 1..whole.len()) {
        assert!(matches!(read(&whole[..cut], &[]), Err(TarError::Truncated { .. })), "cut at {cut}");
    }
    let more = [&whole[..], &bare].concat();
    assert_eq!(read(&more, &[]), Err(TarError::AfterEnd { at: whole.len() as u64 }));
}

#[test]
fn bodies_are_slices_of_the_pushed_chunk() {
    let archive = Bytes::from(archive_of(
        &[(member("a", MemberKind::File { size: 3 }), b"abc".to_vec())],
        TarEnd::Bare,
    ));
    let mut reader = TarReader::new();
    reader.push(archive.clone());
    assert!(matches!(reader.next(), Ok(Some(TarItem::Member(_)))));
    let Ok(Some(TarItem::Data(data))) = reader.next() else { panic!("no data") };
    assert_eq!(data.as_ptr(), archive[BLOCK..].as_ptr());
}

#[test]
fn an_archive_of_gnu_tar_is_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    std::os::unix::fs::symlink("/else/where", dir.path().join("d/link")).unwrap();
    std::io::Write::write_all(
        &mut std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(dir.path().join("d/file"))
            .unwrap(),
        &content,
    )
    .unwrap();
    for format in ["gnu", "ustar"] {
        let run = std::process::Command::new("tar")
            .arg("-C")
            .arg(dir.path())
            .args(["--sort=name", "--format", format, "-cf", "-", "./d"])
            .output()
            .unwrap();
        assert!(run.status.success());
        let (members, end) = read(&run.stdout, &[700, 5000]).unwrap();
        let seen: Vec<_> = members.iter().map(|(m, data)| (&m.path[..], m.kind.clone(), &data[..])).collect();
        let link = MemberKind::Symlink { target: b"/else/where".to_vec() };
        assert_eq!(end, TarEnd::Terminated);
        assert_eq!(
            seen,
            [
                (&b"d"[..], MemberKind::Directory, &b""[..]),
                (b"d/file", MemberKind::File { size: 400_000 }, &content),
                (b"d/link", link, b""),
            ]
        );
    }
}

#[test]
fn a_path_in_two_fields_is_put_together() {
    let path = format!("{}/{}", "p".repeat(120), "n".repeat(90));
    let mut header = ::tar::Header::new_ustar();
    header.set_path(&path).unwrap();
    header.set_size(0);
    header.set_cksum();
    assert_eq!(parse_header(header.as_bytes(), 0).unwrap().path, path.as_bytes());
}

fn tree() -> impl Strategy<Value = Vec<Whole>> {
    let path = "[a-z]{1,6}(/[a-z0-9_.]{1,12}x){0,3}";
    let one =
        (path, 0..4_u8, proptest::collection::vec(any::<u8>(), 0..2000)).prop_map(|(path, kind, data)| {
            match kind {
                0 => (member(&path, MemberKind::Directory), Vec::new()),
                1 => (member(&path, MemberKind::Symlink { target: path.clone().into() }), Vec::new()),
                _ => (member(&path, MemberKind::File { size: data.len() as u64 }), data),
            }
        });
    proptest::collection::vec(one, 0..8)
}

proptest! {
    #[test]
    fn where_the_stream_is_cut_makes_no_difference(
        members in tree(),
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
        terminated: bool,
    ) {
        let end = if terminated { TarEnd::Terminated } else { TarEnd::Bare };
        prop_assert_eq!(read(&archive_of(&members, end), &cuts), Ok((members, end)));
    }

    #[test]
    fn archives_of_the_tar_crate_are_read(
        members in tree(),
        cuts in proptest::collection::vec(any::<usize>(), 0..10),
    ) {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (member, data) in &members {
            let mut header = ::tar::Header::new_gnu();
            header.set_mode(member.mode);
            header.set_uid(member.uid.into());
            header.set_gid(member.gid.into());
            header.set_mtime(member.mtime);
            header.set_size(data.len() as u64);
            let path = std::str::from_utf8(&member.path).unwrap();
            header.set_entry_type(match &member.kind {
                MemberKind::File { .. } => ::tar::EntryType::Regular,
                MemberKind::Directory => ::tar::EntryType::Directory,
                MemberKind::Symlink { .. } => ::tar::EntryType::Symlink,
            });
            match &member.kind {
                MemberKind::Symlink { target } => {
                    builder.append_link(&mut header, path, std::str::from_utf8(target).unwrap()).unwrap();
                }
                _ => builder.append_data(&mut header, path, &data[..]).unwrap(),
            }
        }
        let archive = builder.into_inner().unwrap();
        prop_assert_eq!(read(&archive, &cuts), Ok((members, TarEnd::Terminated)));
    }

    #[test]
    fn our_headers_are_read_by_the_tar_crate(members in tree()) {
        let archive = archive_of(&members, TarEnd::Terminated);
        let mut reader = ::tar::Archive::new(&archive[..]);
        let mut seen = Vec::new();
        for entry in reader.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
            let path = entry.path_bytes().strip_suffix(b"/").unwrap_or(&entry.path_bytes()).to_vec();
            seen.push((path, data));
        }
        let expected: Vec<_> = members.into_iter().map(|(m, data)| (m.path, data)).collect();
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn no_bytes_make_it_panic(
        (noise, at) in (proptest::collection::vec(any::<u8>(), 0..8), 0_usize..512),
        cuts in proptest::collection::vec(any::<usize>(), 0..5),
    ) {
        let mut archive = block_with(124, b"00000000700");
        let end = archive.len();
        noise.iter().enumerate().for_each(|(i, &byte)| archive[(at + i) % end] = byte);
        let sum = checksum(archive.first_chunk().unwrap());
        archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend([0; 900]);
        let _ = read(&archive, &cuts);
    }
}
