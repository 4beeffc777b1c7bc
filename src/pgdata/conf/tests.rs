//! Tests of the configuration syntax. tests/pgdata.rs asks a real server about the same lines; here stand the rules and the round
//! trips: what is quoted is read back, by this parser and by /bin/sh.

use super::*;
use proptest::prelude::*;

fn settings(text: &str) -> Vec<(usize, String, String)> {
    let items = parse(text.as_bytes()).unwrap().into_iter();
    items
        .map(|item| match item.kind {
            ItemKind::Setting { name, value } => (item.line, name, value),
            ItemKind::Include { kind, path } => (item.line, format!("{kind:?}"), path),
        })
        .collect()
}

fn one(line: &str) -> Option<String> {
    parse(line.as_bytes()).ok()?.into_iter().next().map(|item| match item.kind {
        ItemKind::Setting { value, .. } => value,
        ItemKind::Include { path, .. } => path,
    })
}

#[test]
fn a_file_becomes_settings_with_their_lines() {
    let text = "# a comment\n\n  Port = 5432 # here\r\nwork_mem 4MB\nmy.Ext='a'\ninclude 'x'\ninclude_dir = conf.d/\n\
        include_if_exists 'y'";
    let want = [
        (3, "port", "5432"),
        (4, "work_mem", "4MB"),
        (5, "my.ext", "a"),
        (6, "File", "x"),
        (7, "Directory", "conf.d/"),
        (8, "FileIfExists", "y"),
    ];
    assert_eq!(settings(text), want.map(|(l, n, v)| (l, n.to_owned(), v.to_owned())));
}

#[test]
fn quoted_values_follow_the_rules_of_the_server() {
    for (line, value) in [
        ("a = ''", ""),
        ("a = 'it''s'", "it's"),
        (r"a = 'it\'s'", "it's"),
        (r"a = 'a\\b\tc\nd\101\7e\q'", "a\\b\tc\ndA\x07eq"),
        ("a = '#no comment'", "#no comment"),
        (r"a = 'ends\0here'", "ends"),
        ("a'b'", "b"),
    ] {
        assert_eq!(one(line).as_deref(), Some(value), "{line}");
    }
}

#[test]
fn what_the_server_refuses_is_refused_with_its_line() {
    for line in [
        "a",
        "a =",
        "a = # x",
        "a = 'x",
        r"a = 'x\'",
        "a = 'x' y",
        "a b c",
        "a = b.c",
        "a.b.c = 1",
        "= 1",
        "1 = 1",
        "a = 1.5GB",
        "a = 10abc5",
        "a = --1",
        "a == 1",
        "a = %",
        "a = 1,2",
        "a = 'x''",
        "a = '\0'",
    ] {
        assert!(parse(line.as_bytes()).is_err(), "{line} was accepted");
    }
    assert_eq!(
        parse(b"a = 1\n\nb = 'x").unwrap_err().to_string(),
        "line 3 is not a setting: the closing quote is missing"
    );
}

#[test]
fn numbers_are_read_as_they_stand() {
    for value in ["0", "-1", "+5", "10min", "0x1F", "0x1FkB", "1.5", ".5", "-1.5e-3", "1.", "0x"] {
        assert_eq!(one(&format!("a = {value}")).as_deref(), Some(value));
    }
}

#[test]
fn stripping_keeps_every_other_byte() {
    let text = b"# recovery_target = 'x'\nRecovery_Target='broken\nport = 1 \xFF\r\n\trestore_command = ''\ninclude 'recovery_x'\nlast";
    let drop = |name: &str| name.starts_with("recovery_") || name == "restore_command";
    let want: &[u8] = b"# recovery_target = 'x'\nport = 1 \xFF\r\ninclude 'recovery_x'\nlast";
    assert_eq!(strip_settings(text, drop), want);
    assert_eq!(strip_settings(text, |_| false), text);
}

#[test]
fn restore_command_is_absolute_quoted_and_doubles_percent_signs() {
    let binary = Path::new("/opt/100% pitr/pitr");
    let source = CommandSource::Config { path: Path::new("/etc/it's.toml"), repository: Some("cloud") };
    assert_eq!(
        restore_command(binary, &source, TimelineId::new(3)).unwrap(),
        r#"'/opt/100%% pitr/pitr' archive-get --config '/etc/it'\''s.toml' --repository cloud --timeline 3 %f "%p""#
    );
    let url = CommandSource::Url { url: "file:///b%20k", cluster: "main" };
    assert_eq!(
        restore_command(Path::new("/p"), &url, None).unwrap(),
        r#"/p archive-get --repository 'file:///b%%20k' --cluster main %f "%p""#
    );
    assert_eq!(restore_command(Path::new("pitr"), &url, None), Err(QuoteError::Path));
    assert_eq!(
        archive_command(Path::new("/usr/local/bin/pitr"), Path::new("/etc/pitr/pitr.toml")).unwrap(),
        "/usr/local/bin/pitr --config /etc/pitr/pitr.toml archive-push %p"
    );
}

#[test]
fn text_with_a_nul_byte_is_refused() {
    assert_eq!(quote_value("a\0b"), Err(QuoteError::Nul));
    assert_eq!(quote_shell("a\0b"), Err(QuoteError::Nul));
}

proptest! {
    #[test]
    fn a_quoted_value_is_read_back(value in "[^\0]*") {
        let line = format!("a = {}", quote_value(&value).unwrap());
        prop_assert!(!line.contains(['\n', '\r']));
        prop_assert_eq!(one(&line), Some(value));
    }

    #[test]
    fn any_bytes_give_an_answer_and_stripping_nothing_changes_nothing(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\''), Just(b'\\'), Just(b'\n'), Just(b'='), Just(b'a'), any::<u8>()], 0..60)
    ) {
        let _ = parse(&bytes);
        prop_assert_eq!(strip_settings(&bytes, |_| false), bytes);
    }

    #[test]
    fn the_shell_reads_a_quoted_word_back(word in "[ -~\n]{0,20}") {
        let script = format!("printf %s {}", quote_shell(&word).unwrap());
        let output = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
        prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
    }
}
