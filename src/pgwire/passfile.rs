//! The password file of PostgreSQL's clients (`~/.pgpass`): which line answers for a connection.
//!
//! A line is `host:port:database:user:password`; `*` matches anything, `\:` and `\\` stand for themselves, `#` begins a comment.
//! The first line that matches decides. Pure; the caller reads the file and makes sure that nobody else can.
//! Source of truth: `passwordFromFile` in `fe-connect.c`.

/// Larger files are not read.
pub const MAX_PASSFILE: u64 = 1 << 20;

/// What a line is matched against.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    /// Names of the server; the default socket directory also answers to `localhost`.
    pub hosts: &'a [&'a str],
    /// Port, as text.
    pub port: &'a str,
    /// Name of the database; `replication` for a replication connection.
    pub database: &'a str,
    /// Name of the role.
    pub user: &'a str,
}

/// The password of the first matching line.
pub fn find(content: &[u8], wanted: &Lookup<'_>) -> Option<Vec<u8>> {
    content.split(|&byte| byte == b'\n').find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.starts_with(b"#") {
            return None;
        }
        let [host, port, database, user, password] = fields(line)?;
        let hit = wanted.hosts.iter().any(|name| host.matches(name))
            && port.matches(wanted.port)
            && database.matches(wanted.database)
            && user.matches(wanted.user);
        (hit && !password.value.is_empty()).then_some(password.value)
    })
}

#[derive(Debug, Default)]
struct Field {
    /// The text with its escapes resolved.
    value: Vec<u8>,
    /// True for a bare `*`; `\*` is a name.
    any: bool,
}

impl Field {
    fn matches(&self, text: &str) -> bool {
        self.any || self.value == text.as_bytes()
    }
}

/// The five fields; what follows a further colon is ignored, as libpq does.
fn fields(line: &[u8]) -> Option<[Field; 5]> {
    let mut bytes = line.iter().copied();
    let mut field = || {
        let (mut field, mut escaped, mut ended) = (Field::default(), false, false);
        while let Some(byte) = bytes.next() {
            match byte {
                b':' => {
                    ended = true;
                    break;
                }
                b'\\' => {
                    escaped = true;
                    field.value.push(bytes.next().unwrap_or(b'\\'));
                }
                plain => field.value.push(plain),
            }
        }
        field.any = !escaped && field.value == b"*";
        (field, ended)
    };
    let mut all: [Field; 5] = Default::default();
    let last = all.len().saturating_sub(1);
    for (index, slot) in all.iter_mut().enumerate() {
        let (value, ended) = field();
        if !ended && index < last {
            return None;
        }
        *slot = value;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lookup(content: &str) -> Option<String> {
        let wanted = Lookup {
            hosts: &["db.example", "localhost"],
            port: "5432",
            database: "replication",
            user: "bob",
        };
        find(content.as_bytes(), &wanted).map(|password| String::from_utf8(password).unwrap())
    }

    #[test]
    fn the_first_matching_line_decides() {
        let content = "# db.example:5432:replication:bob:comment\n\nbroken\ndb.example:5433:*:bob:port\n\
                       db.example:*:postgres:bob:database\n*:*:*:bob:hit\n*:*:*:*:late\n";
        assert_eq!(lookup(content).as_deref(), Some("hit"));
    }

    #[test]
    fn any_name_of_the_server_matches() {
        assert_eq!(lookup("localhost:5432:replication:bob:x\r\n").as_deref(), Some("x"));
        assert_eq!(lookup("elsewhere:5432:replication:bob:x"), None);
    }

    #[test]
    fn escapes_are_resolved_and_an_escaped_star_is_a_name() {
        assert_eq!(lookup(r"*:*:*:bob:a\:b\\c:ignored").as_deref(), Some(r"a:b\c"));
        assert_eq!(lookup(r"*:*:*:\*:x"), None);
        assert_eq!(lookup(r"*:*:*:b\ob:x").as_deref(), Some("x"));
    }

    #[test]
    fn a_line_without_password_answers_nothing() {
        assert_eq!(lookup("*:*:*:bob:\n*:*:*:bob\n*:*:*:bob:later").as_deref(), Some("later"));
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_found_again(password in "[ -~]{1,20}", user in "[ -~]{1,10}") {
            let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:").replace('*', r"\*");
            let line = format!("*:*:*:{}:{}", escape(&user), escape(&password));
            let wanted = Lookup { hosts: &["h"], port: "1", database: "d", user: &user };
            prop_assert_eq!(find(line.as_bytes(), &wanted), Some(password.into_bytes()));
        }

        #[test]
        fn no_bytes_make_it_panic(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let wanted = Lookup { hosts: &["h"], port: "1", database: "d", user: "u" };
            let _ = find(&content, &wanted);
        }
    }
}
