//! Messages from the server, cut out of a growing read buffer and decoded; and the few that we send.
//!
//! ```text
//!  read buffer   ┌ tag ┬ length (i32, counts itself) ┬ body ……┐┌ tag ┬ …
//!                │  d  │ 00 00 80 05                 │ 'd' …  ││     │       CopyData bodies leave as slices of the buffer
//! ```
//! Pure. Invariants: nothing is consumed before a message is complete; no allocation is sized by a length from the wire; a length
//! above the bound of its kind is refused before its body is read. CopyBothResponse (`W`) is decoded here, because the codec crate
//! does not know it. Source of truth: `protocol.sgml`, `pqformat.c`, and `fe-protocol3.c` for the bounds.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::{backend, frontend};

/// Upper bound of messages that carry data or text: rows, copy data, errors and notices.
pub const MAX_LONG_MESSAGE: u32 = 64 << 20;
/// Upper bound of all others (libpq uses the same number), and of everything before authentication is over.
pub const MAX_SHORT_MESSAGE: u32 = 30_000;

/// How far the conversation has come: before authentication even an error must be short, so that a port which speaks another
/// protocol is recognised by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Until ReadyForQuery was seen for the first time.
    Startup,
    /// After it.
    Session,
}

/// Bytes that are not the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A length below 4 or above the bound of its kind.
    #[error("a message of type {} claims {length} bytes; this is not a PostgreSQL server, or the connection is damaged", printable(*tag))]
    Length {
        /// First byte of the message.
        tag: u8,
        /// The length it claims.
        length: u32,
    },
    /// A body that does not fit its tag, or a tag that no server sends.
    #[error("cannot read a message of type {}: {reason}", printable(*tag))]
    Malformed {
        /// First byte of the message.
        tag: u8,
        /// What is wrong with it.
        reason: String,
    },
    /// A request of ours that cannot be put on the wire, such as a text with a zero byte.
    #[error("cannot send {what}: {reason}")]
    Unsendable {
        /// The request.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// A message that is legal, but not at this point.
    #[error("the server sent {got} where {expected} should come")]
    Unexpected {
        /// What came.
        got: &'static str,
        /// What the protocol has at this point.
        expected: &'static str,
    },
    /// A result whose content is not what this command returns.
    #[error("the answer to {command} is not understood: {reason}")]
    Answer {
        /// The command that was sent.
        command: &'static str,
        /// What is wrong with the answer.
        reason: String,
    },
}

/// What the server has to say: the content of a NoticeResponse or ErrorResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerNotice {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, `NOTICE`, ..., never translated.
    pub severity: String,
    /// The five characters of SQLSTATE.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// The DETAIL line.
    pub detail: Option<String>,
    /// The HINT line.
    pub hint: Option<String>,
}

impl std::fmt::Display for ServerNotice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.severity, self.message, self.code)?;
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, ": {detail}"))
    }
}

/// Bytes that a row takes in memory, NULLs included.
pub fn memory_of(row: &Row) -> usize {
    let cells =
        row.iter().map(|cell| size_of::<Option<Bytes>>().saturating_add(cell.as_ref().map_or(0, Bytes::len)));
    cells.fold(size_of::<Row>(), usize::saturating_add)
}

/// What the server asks for before it lets us in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing (more).
    Ok,
    /// The password itself.
    Cleartext,
    /// An MD5 digest with this salt.
    Md5([u8; 4]),
    /// One of these SASL mechanisms.
    Sasl(Vec<String>),
    /// The server's first SCRAM message.
    SaslContinue(Bytes),
    /// The server's last SCRAM message.
    SaslFinal(Bytes),
    /// A method that pitr does not speak.
    Other(&'static str),
}

/// A row: each column a slice of the message, or NULL.
pub type Row = Vec<Option<Bytes>>;

/// A message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// `R`
    Authentication(Authentication),
    /// `S`: a setting the server reports.
    ParameterStatus(String, String),
    /// `K`: what a cancel request needs.
    BackendKeyData {
        /// The server's process.
        process: i32,
        /// What only we know.
        secret: i32,
    },
    /// `Z`: the command is over.
    ReadyForQuery,
    /// `T`: a result begins.
    RowDescription,
    /// `D`
    DataRow(Row),
    /// `C`: a result ends; the tag names the command.
    CommandComplete(String),
    /// `I`
    EmptyQuery,
    /// `H`: copy data will come.
    CopyOut,
    /// `G`: copy data is awaited.
    CopyIn,
    /// `W`: copy data flows both ways.
    CopyBoth,
    /// `d`
    CopyData(Bytes),
    /// `c`
    CopyDone,
    /// `E`
    Error(Box<ServerNotice>),
    /// `N`
    Notice(Box<ServerNotice>),
    /// Answers of the extended protocol that carry nothing for us.
    Acknowledged,
}

impl Message {
    /// What the message is called in `protocol.sgml`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Authentication(_) => "AuthenticationRequest",
            Self::ParameterStatus(..) => "ParameterStatus",
            Self::BackendKeyData { .. } => "BackendKeyData",
            Self::ReadyForQuery => "ReadyForQuery",
            Self::RowDescription => "RowDescription",
            Self::DataRow(_) => "DataRow",
            Self::CommandComplete(_) => "CommandComplete",
            Self::EmptyQuery => "EmptyQueryResponse",
            Self::CopyOut => "CopyOutResponse",
            Self::CopyIn => "CopyInResponse",
            Self::CopyBoth => "CopyBothResponse",
            Self::CopyData(_) => "CopyData",
            Self::CopyDone => "CopyDone",
            Self::Error(_) => "ErrorResponse",
            Self::Notice(_) => "NoticeResponse",
            Self::Acknowledged => "an extended-query acknowledgement",
        }
    }
}

/// Takes the first message off `buffer`, or `None` if it is not there completely.
///
/// # Errors
/// [`WireError`] if the bytes are not a message of this protocol; the connection is of no further use then.
pub fn split(buffer: &mut BytesMut, phase: Phase) -> Result<Option<Message>, WireError> {
    let Some((&tag, rest)) = buffer.split_first() else { return Ok(None) };
    let Some(length) = rest.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)) else {
        return Ok(None);
    };
    if length < 4 || length > bound(tag, phase) {
        return Err(WireError::Length { tag, length });
    }
    let body = usize::try_from(length).unwrap_or(usize::MAX);
    if rest.len() < body {
        return Ok(None);
    }
    let mut whole = buffer.split_to(body.saturating_add(1));
    if tag == b'W' {
        return Ok(Some(Message::CopyBoth));
    }
    if tag == b'd' {
        whole.advance(5);
        return Ok(Some(Message::CopyData(whole.freeze())));
    }
    let malformed = |error: std::io::Error| WireError::Malformed { tag, reason: error.to_string() };
    let parsed = backend::Message::parse(&mut whole).map_err(malformed)?;
    let parsed = parsed.ok_or_else(|| WireError::Malformed { tag, reason: "it ends too early".into() })?;
    decode(parsed, tag).map_err(malformed).map(Some)
}

/// What the length word of a message of this kind may say at most.
fn bound(tag: u8, phase: Phase) -> u32 {
    match (phase, tag) {
        (Phase::Session, b'T' | b'D' | b'd' | b'E' | b'N') => MAX_LONG_MESSAGE,
        _ => MAX_SHORT_MESSAGE,
    }
}

fn decode(message: backend::Message, tag: u8) -> std::io::Result<Message> {
    use backend::Message as B;
    Ok(match message {
        B::AuthenticationOk => Message::Authentication(Authentication::Ok),
        B::AuthenticationCleartextPassword => Message::Authentication(Authentication::Cleartext),
        B::AuthenticationMd5Password(body) => Message::Authentication(Authentication::Md5(body.salt())),
        B::AuthenticationSasl(body) => {
            let names = body.mechanisms().map(|name| Ok(name.to_owned())).collect()?;
            Message::Authentication(Authentication::Sasl(names))
        }
        B::AuthenticationSaslContinue(body) => {
            Message::Authentication(Authentication::SaslContinue(Bytes::copy_from_slice(body.data())))
        }
        B::AuthenticationSaslFinal(body) => {
            Message::Authentication(Authentication::SaslFinal(Bytes::copy_from_slice(body.data())))
        }
        B::AuthenticationGss | B::AuthenticationGssContinue(_) => other_method("GSSAPI"),
        B::AuthenticationKerberosV5 => other_method("Kerberos V5"),
        B::AuthenticationScmCredential => other_method("SCM credentials"),
        B::AuthenticationSspi => other_method("SSPI"),
        B::ParameterStatus(body) => {
            Message::ParameterStatus(body.name()?.to_owned(), body.value()?.to_owned())
        }
        B::BackendKeyData(body) => {
            Message::BackendKeyData { process: body.process_id(), secret: body.secret_key() }
        }
        B::ReadyForQuery(_) => Message::ReadyForQuery,
        B::RowDescription(_) => Message::RowDescription,
        B::DataRow(body) => Message::DataRow(row(&body)?),
        B::CommandComplete(body) => Message::CommandComplete(body.tag()?.to_owned()),
        B::EmptyQueryResponse => Message::EmptyQuery,
        B::CopyOutResponse(_) => Message::CopyOut,
        B::CopyInResponse(_) => Message::CopyIn,
        B::CopyData(body) => Message::CopyData(body.into_bytes()),
        B::CopyDone => Message::CopyDone,
        B::ErrorResponse(body) => Message::Error(Box::new(notice(body.fields())?)),
        B::NoticeResponse(body) => Message::Notice(Box::new(notice(body.fields())?)),
        B::ParseComplete | B::BindComplete | B::CloseComplete | B::NoData | B::NotificationResponse(_) => {
            Message::Acknowledged
        }
        _ => return Err(std::io::Error::other(format!("tag {} has no place here", printable(tag)))),
    })
}

fn other_method(name: &'static str) -> Message {
    Message::Authentication(Authentication::Other(name))
}

fn row(body: &backend::DataRowBody) -> std::io::Result<Row> {
    let cell = |range: Option<std::ops::Range<usize>>| Ok(range.map(|r| body.buffer_bytes().slice(r)));
    body.ranges().map(cell).collect()
}

/// Most bytes of each text of a notice: hundreds of them are kept.
const MAX_TEXT: usize = 16 << 10;

/// Before authentication the server may speak the encoding of its own locale, so text is read leniently.
fn notice(mut fields: backend::ErrorFields<'_>) -> std::io::Result<ServerNotice> {
    let mut said = ServerNotice {
        severity: String::new(),
        code: String::new(),
        message: String::new(),
        detail: None,
        hint: None,
    };
    while let Some(field) = fields.next()? {
        let bytes = field.value_bytes();
        let text = String::from_utf8_lossy(bytes.get(..MAX_TEXT).unwrap_or(bytes)).into_owned();
        match field.type_() {
            b'V' => said.severity = text,
            b'S' if said.severity.is_empty() => said.severity = text,
            b'C' => said.code = text,
            b'M' => said.message = text,
            b'D' => said.detail = Some(text),
            b'H' => said.hint = Some(text),
            _ => {}
        }
    }
    Ok(said)
}

fn printable(tag: u8) -> String {
    if tag.is_ascii_graphic() { format!("'{}'", char::from(tag)) } else { format!("0x{tag:02x}") }
}

/// Appends the start-up packet, protocol 3.0.
///
/// # Errors
/// [`WireError::Unsendable`] if a value holds a zero byte.
pub fn put_startup(parameters: &[(&str, &str)], out: &mut BytesMut) -> Result<(), WireError> {
    put("the start-up packet", out, |out| frontend::startup_message(parameters.iter().copied(), out))
}

/// Appends one command of the simple query protocol, the only one a walsender takes.
///
/// # Errors
/// [`WireError::Unsendable`] if the text holds a zero byte.
pub fn put_query(text: &str, out: &mut BytesMut) -> Result<(), WireError> {
    put("a query", out, |out| frontend::query(text, out))
}

/// Appends one statement with parameters, all in text form: Parse, Bind, Execute, Sync.
///
/// # Errors
/// [`WireError::Unsendable`] if a text holds a zero byte or there are too many parameters.
pub fn put_statement(text: &str, parameters: &[&str], out: &mut BytesMut) -> Result<(), WireError> {
    put("a statement", out, |out| {
        frontend::parse("", text, [], out)?;
        let text_form = |value: &&str, out: &mut BytesMut| {
            out.put_slice(value.as_bytes());
            Ok(postgres_protocol::IsNull::No)
        };
        frontend::bind("", "", [], parameters, text_form, [], out).map_err(|error| match error {
            frontend::BindError::Conversion(error) => std::io::Error::other(error),
            frontend::BindError::Serialization(error) => error,
        })?;
        frontend::execute("", 0, out)?;
        frontend::sync(out);
        Ok(())
    })
}

/// Appends a password, or the MD5 digest that stands for it.
///
/// # Errors
/// [`WireError::Unsendable`] if it holds a zero byte.
pub fn put_password(password: &[u8], out: &mut BytesMut) -> Result<(), WireError> {
    put("the password", out, |out| frontend::password_message(password, out))
}

/// Appends the first SCRAM message.
///
/// # Errors
/// [`WireError::Unsendable`] if it cannot be encoded.
pub fn put_sasl_initial(mechanism: &str, data: &[u8], out: &mut BytesMut) -> Result<(), WireError> {
    put("the SCRAM message", out, |out| frontend::sasl_initial_response(mechanism, data, out))
}

/// Appends a later SCRAM message.
///
/// # Errors
/// [`WireError::Unsendable`] if it cannot be encoded.
pub fn put_sasl(data: &[u8], out: &mut BytesMut) -> Result<(), WireError> {
    put("the SCRAM message", out, |out| frontend::sasl_response(data, out))
}

/// Appends the question whether the server speaks TLS, the first thing on a connection.
pub fn put_ssl_request(out: &mut BytesMut) {
    frontend::ssl_request(out);
}

/// Appends the request to cancel what another session does, the only thing on a connection.
pub fn put_cancel(process: i32, secret: i32, out: &mut BytesMut) {
    frontend::cancel_request(process, secret, out);
}

/// Appends the orderly good-bye.
pub fn put_terminate(out: &mut BytesMut) {
    frontend::terminate(out);
}

fn put(
    what: &'static str,
    out: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
) -> Result<(), WireError> {
    let before = out.len();
    write(out).map_err(|error| {
        out.truncate(before); // half a message must never reach the socket
        WireError::Unsendable { what, reason: error.to_string() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag], &length.to_be_bytes()[..], body].concat()
    }

    fn all(bytes: &[u8], cuts: &[usize]) -> Vec<Message> {
        let (mut buffer, mut seen, mut from) = (BytesMut::new(), Vec::new(), 0);
        for to in cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([bytes.len()]) {
            let to = to.max(from);
            buffer.extend_from_slice(&bytes[from..to]);
            from = to;
            while let Some(message) = split(&mut buffer, Phase::Session).unwrap() {
                seen.push(message);
            }
        }
        seen
    }

    #[test]
    fn copy_data_is_a_slice_of_the_read_buffer() {
        let mut buffer = BytesMut::from(&frame(b'd', b"dpayload")[..]);
        let address = buffer.as_ptr() as usize;
        let Some(Message::CopyData(data)) = split(&mut buffer, Phase::Session).unwrap() else { panic!() };
        assert_eq!((&data[..], data.as_ptr() as usize), (&b"dpayload"[..], address + 5));
    }

    #[test]
    fn copy_both_is_understood() {
        assert_eq!(all(&frame(b'W', &[0, 0, 0]), &[]), [Message::CopyBoth]);
    }

    #[test]
    fn an_error_tells_all_its_fields_and_survives_bytes_that_are_not_utf8() {
        let body = b"SFATALE\0VFATAL\0C28P01\0Mno \xff\0Dmore\0Hdo\0\0";
        let said = ServerNotice {
            severity: "FATAL".into(),
            code: "28P01".into(),
            message: "no \u{fffd}".into(),
            detail: Some("more".into()),
            hint: Some("do".into()),
        };
        assert_eq!(all(&frame(b'E', body), &[]), [Message::Error(Box::new(said))]);
    }

    /// A server that nobody has asked who it is may send hundreds of them.
    #[test]
    fn the_texts_of_a_notice_are_cut() {
        let body = [b"SWARNING\0C01000\0M", "\u{e9}".repeat(40_000).as_bytes(), b"\0\0"].concat();
        let [Message::Notice(said)] = &all(&frame(b'N', &body), &[])[..] else { panic!() };
        assert!(
            said.message.starts_with("\u{e9}\u{e9}") && said.message.len() <= MAX_TEXT + 3,
            "{}",
            said.message.len()
        );
    }

    #[test]
    fn cells_without_a_value_take_memory_too() {
        assert!(memory_of(&vec![None; 1000]) >= 1000 * size_of::<Option<Bytes>>());
        assert!(memory_of(&Row::new()) > 0);
        let cell = Some(Bytes::from_static(&[7; 500]));
        assert_eq!(memory_of(&vec![cell]), memory_of(&vec![None]) + 500);
    }

    #[test]
    fn a_port_that_speaks_http_is_recognised_by_its_first_bytes() {
        let error = split(&mut BytesMut::from(&b"HTTP/1.1 400 Bad Request"[..]), Phase::Startup).unwrap_err();
        assert_eq!(error, WireError::Length { tag: b'H', length: u32::from_be_bytes(*b"TTP/") });
        assert!(error.to_string().contains("not a PostgreSQL server"), "{error}");
    }

    #[test]
    fn lengths_beyond_the_bound_are_refused_before_the_body_arrives() {
        let long = |tag, length: u32| BytesMut::from(&[&[tag], &length.to_be_bytes()[..]].concat()[..]);
        assert!(split(&mut long(b'd', MAX_LONG_MESSAGE + 1), Phase::Session).is_err());
        assert_eq!(split(&mut long(b'd', MAX_LONG_MESSAGE), Phase::Session), Ok(None));
        assert!(split(&mut long(b'C', MAX_SHORT_MESSAGE + 1), Phase::Session).is_err());
        assert!(split(&mut long(b'E', MAX_SHORT_MESSAGE + 1), Phase::Startup).is_err());
        assert!(split(&mut long(b'd', 3), Phase::Session).is_err());
    }

    #[test]
    fn a_text_with_a_zero_byte_leaves_nothing_in_the_send_buffer() {
        let mut out = BytesMut::from(&b"before"[..]);
        assert!(put_query("SELECT '\0'", &mut out).is_err());
        assert_eq!(&out[..], b"before");
    }

    proptest! {
        #[test]
        fn where_the_socket_cuts_makes_no_difference(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..12),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
        ) {
            let mut cuts = cuts;
            let bytes: Vec<u8> = bodies.iter().flat_map(|body| frame(b'd', body)).collect();
            cuts.sort_by_key(|cut| cut % (bytes.len() + 1));
            let expected: Vec<_> =
                bodies.iter().map(|body| Message::CopyData(Bytes::copy_from_slice(body))).collect();
            prop_assert_eq!(all(&bytes, &cuts), expected);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = split(&mut buffer, Phase::Session) {}
        }

        #[test]
        fn no_body_makes_it_panic(tag in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = split(&mut BytesMut::from(&frame(tag, &body)[..]), Phase::Session);
        }
    }
}
