//! The two written forms of a connection string, each turned into pairs of keyword and value.
//!
//! ```text
//!  host=/run/postgresql user='o''brien'         words; a value in quotes or not, \ takes the next character as it is
//!  postgresql://user:pw@host:5432/db?k=v        a URI; every part percent-encoded
//! ```
//! Pure. Nothing is known here about keywords, except which part of a URI is which. A later pair overrides an earlier one.

use super::ConnInfoError;

type Pairs = Vec<(String, String)>;

/// Pairs in the order of the text.
pub(super) fn pairs(text: &str) -> Result<Pairs, ConnInfoError> {
    let uri = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    uri.map_or_else(|| words(text), parts)
}

fn syntax<T>(reason: String) -> Result<T, ConnInfoError> {
    Err(ConnInfoError::Syntax(reason))
}

fn words(text: &str) -> Result<Pairs, ConnInfoError> {
    let mut chars = text.chars().peekable();
    let mut pairs = Pairs::new();
    loop {
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut keyword = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_ascii_whitespace()) {
            keyword.push(c);
        }
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        if chars.next_if_eq(&'=').is_none() {
            // What follows a blank in a password that lacks its quotes is a part of the password.
            if let Some((before, _)) = pairs.last().filter(|(before, _)| before.ends_with("password")) {
                return syntax(format!("the value of {before} has a blank in it and stands in no quotes"));
            }
            return syntax(format!("\"=\" is missing after {:?}", shortened(&keyword)));
        }
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                Some('\'') if quoted => break,
                Some(c) if c.is_ascii_whitespace() && !quoted => break,
                Some(c) => value.push(c),
                None if quoted => return syntax(format!("the quoted value of {keyword} does not end")),
                None => break,
            }
        }
        pairs.push((keyword, value));
    }
}

/// At most 64 characters: a text that is no connection string may be anything, a secret included.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// What follows the scheme: `[user[:password]@][host[:port]][/dbname][?keyword=value&...]`.
fn parts(rest: &str) -> Result<Pairs, ConnInfoError> {
    let mut pairs = Pairs::new();
    let mut add = |keyword: &str, value: &str| -> Result<(), ConnInfoError> {
        if !value.is_empty() {
            pairs.push((keyword.to_owned(), decoded(value, keyword)?));
        }
        Ok(())
    };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let (authority, dbname) = place.split_once('/').unwrap_or((place, ""));
    let (login, server) = authority.split_once('@').map_or((None, authority), |(l, s)| (Some(l), s));
    // Only the first one ends a login; the name of a host may begin with one.
    if server.split(',').any(|host| host.chars().skip(1).any(|c| c == '@')) {
        return syntax("an \"@\" in a user or a password is written %40".into());
    }
    if let Some(login) = login {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        add("user", user)?;
        add("password", password)?;
    }
    let (host, port) = hosts_and_ports(server)?;
    add("host", &host)?;
    add("port", &port)?;
    add("dbname", dbname)?;
    for parameter in query.into_iter().flat_map(|query| query.split('&')).filter(|p| !p.is_empty()) {
        let Some((keyword, value)) = parameter.split_once('=') else {
            return syntax(format!("\"=\" is missing after {:?}", shortened(parameter)));
        };
        match (decoded(keyword, "a keyword")?.as_str(), value) {
            ("ssl", "true") => add("sslmode", "require")?,
            (keyword, value) => add(keyword, value)?,
        }
    }
    Ok(pairs)
}

/// The lists of hosts and ports, each with as many items as the URI has servers.
fn hosts_and_ports(servers: &str) -> Result<(String, String), ConnInfoError> {
    let pairs = servers.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?;
    let list = |part: fn(&(&str, &str)) -> String| pairs.iter().map(part).collect::<Vec<_>>().join(",");
    Ok((list(|(host, _)| (*host).to_owned()), list(|(_, port)| (*port).to_owned())))
}

fn host_and_port(server: &str) -> Result<(&str, &str), ConnInfoError> {
    if let Some(rest) = server.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return syntax("the \"]\" of an IPv6 address is missing".into());
        };
        return match rest.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if rest.is_empty() => Ok((address, "")),
            None => syntax("something stands between \"]\" and the port".into()),
        };
    }
    Ok(server.split_once(':').unwrap_or((server, "")))
}

fn decoded(text: &str, what: &str) -> Result<String, ConnInfoError> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let mut digit =
            || bytes.next().and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return syntax(format!("\"%\" is not followed by two hexadecimal digits in {what}"));
        };
        match high << 4 | low {
            0 => return syntax(format!("%00 is not possible in {what}")),
            byte => plain.push(byte),
        }
    }
    String::from_utf8(plain).or_else(|_| syntax(format!("{what} is not UTF-8")))
}
