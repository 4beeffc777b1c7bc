//! `postmaster.pid`: by which a running server says that it is there, and where.
//!
//! ```text
//!  1 process │ 2 data directory │ 3 started at, seconds since 1970 │ 4 port │ 5 socket directory │ 6 address │ 7 shared memory │ 8 status
//! ```
//! The server adds its lines one after another, and a crash leaves the file behind: any of them may be missing, and none of them proves that
//! it runs. Pure. Source of truth: `pidfile.h`, and `CreateLockFile` in `miscinit.c`.

/// Its name, at the top of the data directory.
pub const NAME: &str = "postmaster.pid";

/// What the file says, as far as it says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PidFile {
    /// The number of the server's process. A server in single-user mode writes it with a minus sign.
    pub process: Option<i32>,
    /// When it was started, in seconds since 1970.
    pub started: Option<u64>,
    /// The port it listens at.
    pub port: Option<u16>,
    /// The directory of its first Unix socket; none if it has no such socket.
    pub socket_dir: Option<String>,
}

impl PidFile {
    /// Reads the file. Whatever is not understood is absent.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let line = |number: usize| lines.get(number).copied().filter(|line| !line.is_empty());
        Self {
            process: line(0).and_then(|line| line.parse::<i32>().ok()?.checked_abs()),
            started: line(2).and_then(|line| line.parse().ok()),
            port: line(3).and_then(|line| line.parse().ok()),
            socket_dir: line(4).map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_wrote_is_read_and_what_it_had_no_time_for_is_absent() {
        let whole = b"4711\n/data\n1700000000\n5432\n/run/postgresql\n*\n  1 2\nready   \n";
        let all = PidFile {
            process: Some(4711),
            started: Some(1_700_000_000),
            port: Some(5432),
            socket_dir: Some("/run/postgresql".into()),
        };
        assert_eq!(PidFile::parse(whole), all);
        let first = PidFile { process: Some(4711), ..PidFile::default() };
        assert_eq!(PidFile::parse(b"-4711\n/data\n"), first, "in single-user mode");
        assert_eq!(PidFile::parse(b"4711"), first);
        let socketless = PidFile { socket_dir: None, ..all };
        assert_eq!(PidFile::parse(b"4711\n/data\n1700000000\n5432\n\n*\n"), socketless);
        for other in [&b""[..], b"\n\n", b"\xff\n", b"-2147483648\n", b"99999999999\n"] {
            assert_eq!(PidFile::parse(other), PidFile::default(), "{other:?}");
        }
    }
}
