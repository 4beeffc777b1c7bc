//! Quantities as people read them, for messages and for screens.
//!
//! Sizes by powers of 1024 with one digit behind the point, spans by their two largest units. Cut off, never rounded up: what is said to
//! be free is free. Pure.

/// Bytes as a person reads them: `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut whole, mut tenths, mut unit) = (n, 0, "");
    for name in UNITS {
        if whole < 1024 {
            break;
        }
        (tenths, whole, unit) = (whole % 1024 * 10 / 1024, whole / 1024, name);
    }
    if unit.is_empty() { format!("{n} B") } else { format!("{whole}.{tenths} {unit}") }
}

/// Seconds as a person reads them: `3d 04h`, `1h 02m`, `3m 05s`, `12s`; days from two on.
pub fn seconds(n: u64) -> String {
    match (n / 3600, n / 60 % 60, n % 60) {
        (h, _, _) if h >= 48 => format!("{}d {:02}h", h / 24, h % 24),
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s:02}s"),
        (h, m, _) => format!("{h}h {m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
        assert_eq!(seconds(59), "59s");
        assert_eq!(seconds(3_720), "1h 02m");
        assert_eq!((seconds(172_799), seconds(187_200)), ("47h 59m".to_owned(), "2d 04h".to_owned()));
    }
}
