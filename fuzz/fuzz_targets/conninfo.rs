//! Connection strings, service files and password files: any text is answered, and a password that was given is never shown.
//!
//! The same text is tried in all three roles. Source of truth: `fe-connect.c` of PostgreSQL's libpq.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pgwire::conninfo::service;
use pitr::pgwire::passfile::{self, Lookup};
use pitr::pgwire::{ConnInfo, Environment};

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
    assert!(passfile::find(text.as_bytes(), &wanted).is_none_or(|password| !password.contains(&b'\n')));
});
