//! Tests of `--to`: each form, each refusal with its words, and the days on which clocks change.
//! Expected moments are written in UTC by hand.

use super::*;
use proptest::prelude::*;

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn context(configured: Option<&TimeZone>) -> Context<'_> {
    Context { now: "2025-10-17T12:00:00.0000009Z".parse().unwrap(), configured, host: None, server: None }
}

/// The moment in UTC, or the message and the hint.
fn read(text: &str, configured: Option<&str>) -> String {
    let configured = configured.map(zone);
    match parse(text, &context(configured.as_ref())) {
        Ok(ToSpec::Latest) => "latest".to_owned(),
        Ok(ToSpec::At(moment)) => moment.to_string(),
        Err(error) => format!("{}\n{}", error.message, error.hint),
    }
}

#[test]
fn every_form_is_read() {
    for (text, moment) in [
        ("latest", "latest"),
        (" LATEST ", "latest"),
        ("2025-10-17T03:30:00Z", "2025-10-17T03:30:00Z"),
        ("2025-10-17t03:30z", "2025-10-17T03:30:00Z"),
        ("2025-10-17 10:30+07", "2025-10-17T03:30:00Z"),
        ("2025-10-17 10:30:00 +07:00", "2025-10-17T03:30:00Z"),
        ("2025-10-17 10:30:15.123456+0700", "2025-10-17T03:30:15.123456Z"),
        ("2025-10-17 00:00:00.5-03:30", "2025-10-17T03:30:00.5Z"),
        ("2025-10-17   10:30 Asia/Jakarta", "2025-10-17T03:30:00Z"),
        ("2025-10-17T10:30[Asia/Jakarta]", "2025-10-17T03:30:00Z"),
        ("2025-10-17T10:30:00+07:00[Asia/Jakarta]", "2025-10-17T03:30:00Z"),
        ("2025-10-17 10:30 utc", "2025-10-17T10:30:00Z"),
        ("2025-10-17T10:30:15,5+07:00", "2025-10-17T03:30:15.5Z"),
        ("2025-10-17 10:30 Japan", "2025-10-17T01:30:00Z"),
        ("2025-10-17 10:30 singapore", "2025-10-17T02:30:00Z"),
        ("2025-10-17 10:30 Etc/GMT-7", "2025-10-17T03:30:00Z"),
        ("10 minutes ago", "2025-10-17T11:50:00Z"),
        ("1 hour 30 min ago", "2025-10-17T10:30:00Z"),
        ("90s ago", "2025-10-17T11:58:30Z"),
        ("2 Days Ago", "2025-10-15T12:00:00Z"),
    ] {
        assert_eq!(read(text, None), moment, "{text}");
    }
    assert_eq!(read("2025-10-17 10:30", Some("Asia/Jakarta")), "2025-10-17T03:30:00Z");
    assert_eq!(read("2025-10-17 10:30", Some("Europe/Berlin")), "2025-10-17T08:30:00Z");
}

#[test]
fn a_naive_time_without_a_zone_is_refused_with_its_readings() {
    let (jakarta, berlin) = (zone("Asia/Jakarta"), zone("Europe/Berlin"));
    let context = Context { host: Some(&jakarta), server: Some(&berlin), ..context(None) };
    let error = parse("2025-10-17 10:30", &context).unwrap_err();
    assert_eq!(error.message, "\"2025-10-17 10:30\" has no time zone, and none is configured");
    assert_eq!(
        error.hint,
        "give an offset or a zone, or set `timezone` in the configuration; it could mean\n  \
         --to \"2025-10-17 10:30:00+00:00\"  (UTC)\n  \
         --to \"2025-10-17 10:30:00+07:00\"  (this host, Asia/Jakarta)\n  \
         --to \"2025-10-17 10:30:00+02:00\"  (the server, Europe/Berlin)"
    );
}

#[test]
fn a_time_that_the_clocks_skipped_is_refused_with_both_readings() {
    let want = "2025-03-09 02:30:00 did not exist in America/New_York: the clocks were put forward over it\n\
        give the one you mean:\n  --to \"2025-03-09 01:30:00-05:00\"\n  --to \"2025-03-09 03:30:00-04:00\"";
    assert_eq!(read("2025-03-09 02:30", Some("America/New_York")), want);
    assert_eq!(read("2025-03-09 02:30 America/New_York", None), want);
    assert_eq!(read("2025-03-09 01:59:59.999999", Some("America/New_York")), "2025-03-09T06:59:59.999999Z");
    assert_eq!(read("2025-03-09 03:00", Some("America/New_York")), "2025-03-09T07:00:00Z");
}

#[test]
fn a_time_that_happened_twice_is_refused_with_both_readings() {
    let want = "2025-11-02 01:30:00 happened twice in America/New_York: the clocks were put back over it\n\
        give the one you mean:\n  --to \"2025-11-02 01:30:00-04:00\"\n  --to \"2025-11-02 01:30:00-05:00\"";
    assert_eq!(read("2025-11-02 01:30", Some("America/New_York")), want);
    assert_eq!(read("2025-11-02 01:30:00-04:00", Some("America/New_York")), "2025-11-02T05:30:00Z");
    assert_eq!(read("2025-11-02 01:30:00-05:00[America/New_York]", None), "2025-11-02T06:30:00Z");
    assert_eq!(read("2025-11-02 02:00", Some("America/New_York")), "2025-11-02T07:00:00Z");
}

#[test]
fn the_day_of_a_time_without_a_date_is_worked_out_in_the_configured_zone() {
    let (kiritimati, apia) = (zone("Pacific/Kiritimati"), zone("Pacific/Pago_Pago"));
    let hint = |text, configured, host| {
        parse(text, &Context { configured, host, ..context(None) }).unwrap_err().hint
    };
    assert_eq!(
        hint("yesterday 22:00", Some(&kiritimati), Some(&apia)),
        "today is 2025-10-18 in Pacific/Kiritimati: write \"2025-10-17 22:00\""
    );
    assert_eq!(
        hint("22:00:15", None, Some(&apia)),
        "today is 2025-10-17 in Pacific/Pago_Pago: write \"2025-10-17 22:00:15 Pacific/Pago_Pago\""
    );
}

/// The readings of a text that ends in an abbreviation.
fn readings(text: &str, server: Option<&str>) -> Vec<String> {
    let server = server.map(zone);
    let error = parse(text, &Context { server: server.as_ref(), ..context(None) }).unwrap_err();
    assert!(error.lacks_zone, "{error:?}");
    error.hint.lines().skip(1).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn an_abbreviation_is_shown_with_all_it_could_mean() {
    assert_eq!(
        readings("2025-07-17 10:30 CET", None),
        [
            "--to \"2025-07-17 10:30:00+01:00\"  (CET in Europe/Berlin)",
            "--to \"2025-07-17 10:30:00+02:00\"  (Europe/Berlin on that day)",
        ]
    );
    assert_eq!(
        readings("2025-01-17 10:30 cst", Some("Asia/Taipei")),
        [
            "--to \"2025-01-17 10:30:00+08:00\"  (CST in Asia/Taipei)",
            "--to \"2025-01-17 10:30:00-06:00\"  (CST in America/Chicago)",
            "--to \"2025-01-17 10:30:00-05:00\"  (CST in America/Havana)",
        ]
    );
    // Each reading can be given back as it stands.
    for line in readings("2025-10-17 10:30:15.123 IST", None) {
        let text = line.split('"').nth(1).unwrap().to_owned();
        assert!(parse(&text, &context(None)).is_ok(), "{text}");
    }
}

#[test]
fn only_a_missing_zone_makes_the_servers_zone_worth_asking_for() {
    let berlin = zone("Europe/Berlin");
    for (text, configured, expected) in [
        ("2025-10-17 10:30", None, true),
        ("2025-10-17 10:30", Some(&berlin), false),
        ("2025-10-17 10:30 IST", Some(&berlin), true),
        ("2025-10-17 10:30 XYZ", None, false),
        ("2025-10-26 02:30", Some(&berlin), false),
        ("2025-10-17", None, false),
        ("latest", None, false),
    ] {
        assert_eq!(lacks_zone(text, configured), expected, "{text}");
    }
}

#[test]
fn a_server_may_call_its_zone_by_any_name_of_postgresql() {
    for name in ["Asia/Jakarta", "Japan", "CET", "EST5EDT", "UTC", "<+07>-07", "EST5EDT,M3.2.0,M11.1.0"] {
        assert!(of_server(name).is_some(), "{name}");
    }
    assert!(of_server("localtime or so").is_none());
}

#[test]
fn what_lies_beside_the_zones_is_none() {
    for name in ["localtime", "posixrules", "Factory", "LOCALTIME", "right/UTC", "posix/Asia/Jakarta"] {
        assert!(named(name).is_err_and(|e| e.to_string().contains("no place's time zone")), "{name}");
    }
}

#[test]
fn an_offset_must_agree_with_its_zone() {
    let refused = read("2025-10-17T10:30+08:00[Asia/Jakarta]", None);
    assert!(refused.starts_with(
        "\"2025-10-17T10:30+08:00[Asia/Jakarta]\" contradicts itself: Asia/Jakarta was at +07:00 then"
    ));
}

#[test]
fn what_is_not_one_moment_is_refused_in_words() {
    for (text, message) in [
        (
            "2025-10-17",
            "\"2025-10-17\" has no time of day\nits first moment is \"2025-10-17 00:00\", its last \"2025-10-17 23:59:59.999999\"",
        ),
        ("2025-02-29 10:00Z", "2025-02-29 is not a day of the calendar"),
        (
            "2025-12-31 24:00Z",
            "24:00:00 is not a time of day\nwrite \"2026-01-01 00:00:00\"; PostgreSQL's times know no leap second",
        ),
        (
            "2016-12-31 23:59:60Z",
            "23:59:60 is not a time of day\nwrite \"2017-01-01 00:00:00\"; PostgreSQL's times know no leap second",
        ),
        ("2025-10-17 24:01Z", "24:01:00 is not a time of day\nhours go from 00 to 23"),
        ("2025-10-17 10:60Z", "10:60:00 is not a time of day\nhours go from 00 to 23"),
        (
            "2025-10-17 10:30:00.1234567Z",
            "\"2025-10-17 10:30:00.1234567Z\" has more than six digits of a second",
        ),
        (
            "2025-10-17 10:30 WIB",
            "\"WIB\" is an abbreviation, and these are used for more than one offset\nwrite the zone's name such as Asia/Jakarta, \
             or an offset such as +07; it could mean\n  --to \"2025-10-17 10:30:00+07:00\"  (WIB in Asia/Jakarta)",
        ),
        ("2025-10-17 10:30 UTC+7", "\"UTC+7\" is an abbreviation"),
        ("2025-10-17 10:30 EST5EDT", "\"EST5EDT\" is an abbreviation"),
        ("2025-10-17 10:30 XYZ", "\"XYZ\" is an abbreviation"),
        ("2025-10-17 10:30 EST", "\"EST\" is an abbreviation"),
        ("2025-10-17 10:30 Asia/Jakata", "\"Asia/Jakata\" is not a time zone"),
        ("now", "\"now\" is not a target"),
        ("10:30", "\"10:30\" has no date\ntoday is 2025-10-17 in UTC: write \"2025-10-17 10:30 UTC\""),
        (
            "Yesterday",
            "\"Yesterday\" has no date\ntoday is 2025-10-17 in UTC: write \"2025-10-16 00:00 UTC\"",
        ),
        (
            "today 10:30 Asia/Jakarta",
            "\"today 10:30 Asia/Jakarta\" has no date\ntoday is 2025-10-17 in UTC: write \"2025-10-17 10:30 Asia/Jakarta\"",
        ),
        ("ten minutes ago", "\"ten minutes ago\" is not a time\nforms: "),
    ] {
        assert!(read(text, None).starts_with(message), "{text}: {}", read(text, None));
    }
}

#[test]
fn what_is_no_time_at_all_is_refused() {
    for text in [
        "",
        "x",
        "17.10.2025 10:30",
        "2025-1-7 10:30",
        "2025-10-17 7:30",
        "2025-10-17 10",
        "2025-10-17 10:30:",
        "2025-10-17 10:30:00.",
        "2025-10-17 10:30+7",
        "2025-10-17 10:30+19",
        "2025-10-17 10:30+07:60",
        "2025-10-17 10:30+07:00x",
        "2025-10-17x10:30",
        "2025-10-17 10:30 [Asia/Jakarta",
        "2025-10-17 10:30Asia/Jakarta",
        "20251-10-17 10:30",
        "minutes ago",
        "10 ago",
        " ago",
        "ago",
        "-5 minutes ago",
        "1.5 hours ago",
        "99999999999999999999 days ago",
        "9223372036854775807 weeks ago",
        "2025-10-17 10:30 am",
        "2025-10-17 10:30 +07 Asia/Jakarta",
        "2025-10-17 10:30 ../x",
    ] {
        assert!(parse(text, &context(Some(&zone("Asia/Jakarta")))).is_err(), "{text:?} was accepted");
    }
}

proptest! {
    #[test]
    fn what_is_shown_is_read_back(micros in 0_i64..4_000_000_000_000_000, which in 0_usize..4) {
        let moment = Timestamp::from_microsecond(micros).unwrap();
        let zone = zone(["America/New_York", "Asia/Jakarta", "Australia/Lord_Howe", "UTC"][which]);
        prop_assert_eq!(parse(&show(moment, &zone), &context(None)).unwrap(), ToSpec::At(moment));
    }

    #[test]
    fn a_local_time_is_read_back_or_was_ambiguous(micros in 1_700_000_000_000_000_i64..1_900_000_000_000_000) {
        let moment = Timestamp::from_microsecond(micros).unwrap();
        let zone = zone("America/New_York");
        let local = plain(zone.to_offset(moment).to_datetime(moment));
        match parse(&local, &context(Some(&zone))) {
            Ok(read) => prop_assert_eq!(read, ToSpec::At(moment)),
            Err(error) => prop_assert!(error.hint.contains(&show(moment, &zone)), "{}", error.hint),
        }
    }

    #[test]
    fn any_text_gives_an_answer(text in "[0-9: TZ+\\-./\\[\\]a-zA-Z\u{e4}]{0,40}") {
        let _ = parse(&text, &context(None));
    }
}
