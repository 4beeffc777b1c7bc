//! Connection strings, service files and password files: any text is answered, and a password that was given is never shown.
//!
//! The same text is tried in all three roles, and as the files of a host that name accounts, hosts and name servers.
//! Source of truth: `fe-connect.c` of PostgreSQL's libpq; passwd(5), group(5), hosts(5), resolv.conf(5).
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::account::Account;
use pitr::pgwire::conninfo::service;
use pitr::pgwire::passfile::{self, Lookup};
use pitr::pgwire::{ConnInfo, Environment};
use pitr::resolve;

fuzz_target!(|text: &str| {
    let environment = Environment { os_user: Some("me".into()), ..Environment::default() };
    if let Ok(info) = ConnInfo::parse(text, &environment) {
        assert!(!info.hosts.is_empty() && !info.user.is_empty() && !info.dbname.is_empty());
        assert!(info.hosts.iter().all(|host| host.port > 0 && !host.passfile_names().is_empty()));
        let again = ConnInfo { password: None, ..info.clone() };
        let shown = format!("{info:?}").replace("Some(***)", "None");
        assert_eq!(shown, format!("{again:?}"));
    }
    if let Ok(Some(pairs)) = service::parse(text, "main") {
        assert!(pairs.iter().all(|(keyword, _)| !keyword.contains('=') && keyword != "service"));
    }
    let wanted = Lookup { hosts: &["localhost"], port: "5432", database: "replication", user: "bob" };
    host(text);
    assert!(passfile::find(text.as_bytes(), &wanted).is_none_or(|password| !password.contains(&b'\n')));
});

/// Files below `/etc`.
fn host(text: &str) {
    for account in text.lines().filter_map(Account::of_line) {
        let _ = (account.label(), account.named_in(text));
    }
    assert!(resolve::of_hosts(text, "db.example").len() <= 16);
    let _ = resolve::of_resolv_conf(text);
}
