//! D-Bus messages as bytes, as far as systemd needs them. Pure.
//!
//! Nine kinds of values in, four out: a library for all of it would be a tenth of the agent. The
//! format is that of the D-Bus specification, version 1, in the order of bytes of little machines;
//! what comes may have the other one.

/// A value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    U64(u64),
    Text(String),
    Texts(Vec<String>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::U64(_) => "t",
            Value::Text(_) => "s",
            Value::Texts(_) => "as",
        }
    }
}

/// The arguments of a call.
#[derive(Default)]
pub struct Body {
    signature: String,
    bytes: Vec<u8>,
}

impl Body {
    pub fn new() -> Self {
        Body::default()
    }

    pub fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        put_text(&mut self.bytes, text);
        self
    }

    pub fn bool(mut self, value: bool) -> Self {
        self.signature.push('b');
        put_u32(&mut self.bytes, value.into());
        self
    }

    pub fn properties(mut self, properties: &[(&str, Value)]) -> Self {
        self.signature.push_str("a(sv)");
        put_array(&mut self.bytes, 8, |bytes| {
            for (name, value) in properties {
                align(bytes, 8);
                put_text(bytes, name);
                put_variant(bytes, value);
            }
        });
        self
    }

    /// Units to be started along: none.
    pub fn no_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        put_array(&mut self.bytes, 8, |_| ());
        self
    }
}

/// What a call is addressed to.
pub struct Address<'a> {
    /// Its name on a bus; there is none on a direct connection.
    pub destination: Option<&'a str>,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
}

const LITTLE: u8 = b'l';
const BIG: u8 = b'B';
const METHOD_CALL: u8 = 1;
const PROTOCOL: u8 = 1;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

pub fn call(serial: u32, to: &Address<'_>, body: &Body) -> Vec<u8> {
    let mut bytes = vec![LITTLE, METHOD_CALL, 0, PROTOCOL];
    put_u32(&mut bytes, u32::try_from(body.bytes.len()).expect("a few properties are no gigabytes"));
    put_u32(&mut bytes, serial);
    put_array(&mut bytes, 8, |bytes| {
        let mut field = |code: u8, kind: &str, text: &str| {
            align(bytes, 8);
            bytes.push(code);
            put_signature(bytes, kind);
            match kind {
                "g" => put_signature(bytes, text),
                _ => put_text(bytes, text),
            }
        };
        field(PATH, "o", to.path);
        field(INTERFACE, "s", to.interface);
        field(MEMBER, "s", to.member);
        if let Some(destination) = to.destination {
            field(DESTINATION, "s", destination);
        }
        if !body.signature.is_empty() {
            field(SIGNATURE, "g", &body.signature);
        }
    });
    align(&mut bytes, 8);
    bytes.extend(&body.bytes);
    bytes
}

fn align(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_u32(bytes: &mut Vec<u8>, value: u32) {
    align(bytes, 4);
    bytes.extend(value.to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_u32(bytes, u32::try_from(text.len()).expect("a name is no gigabytes"));
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn put_signature(bytes: &mut Vec<u8>, signature: &str) {
    bytes.push(u8::try_from(signature.len()).expect("our signatures are short"));
    bytes.extend(signature.as_bytes());
    bytes.push(0);
}

/// The length does not count the gap before the first element.
fn put_array(bytes: &mut Vec<u8>, element_alignment: usize, put: impl FnOnce(&mut Vec<u8>)) {
    put_u32(bytes, 0);
    let length_at = bytes.len() - 4;
    align(bytes, element_alignment);
    let begin = bytes.len();
    put(bytes);
    let length = u32::try_from(bytes.len() - begin).expect("a few properties are no gigabytes");
    bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

fn put_variant(bytes: &mut Vec<u8>, value: &Value) {
    put_signature(bytes, value.signature());
    match value {
        Value::Bool(value) => put_u32(bytes, (*value).into()),
        Value::U64(value) => {
            align(bytes, 8);
            bytes.extend(value.to_le_bytes());
        }
        Value::Text(text) => put_text(bytes, text),
        Value::Texts(texts) => put_array(bytes, 4, |bytes| texts.iter().for_each(|text| put_text(bytes, text))),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Call,
    Return,
    Error,
    Signal,
}

/// A message that came.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub serial: u32,
    pub reply_to: Option<u32>,
    pub member: String,
    pub error_name: String,
    /// Texts and paths that the body has, in order; all else in it is of no use to us.
    pub texts: Vec<String>,
}

/// The fixed part, which tells how long the whole is.
pub const HEAD: usize = 16;

/// How many bytes follow the head; `None` if it is none.
pub fn rest_length(head: &[u8; HEAD]) -> Option<usize> {
    let mut reader = Reader::of(head)?;
    reader.at = 4;
    let body = reader.u32()? as usize;
    reader.at = 12;
    let fields = reader.u32()? as usize;
    fields.next_multiple_of(8).checked_add(body)
}

/// A whole message, with its head.
pub fn parse(bytes: &[u8]) -> Option<Message> {
    let mut reader = Reader::of(bytes)?;
    let kind = match bytes.get(1)? {
        1 => Kind::Call,
        2 => Kind::Return,
        3 => Kind::Error,
        4 => Kind::Signal,
        _ => return None,
    };
    reader.at = 8;
    let serial = reader.u32()?;
    let fields_end = reader.u32()? as usize + HEAD;
    let (mut reply_to, mut texts) = (None, Vec::new());
    let (mut member, mut error_name, mut signature) = (String::new(), String::new(), String::new());
    while reader.at < fields_end {
        reader.align(8);
        let code = reader.u8()?;
        match reader.signature()?.as_str() {
            "u" => {
                let number = reader.u32()?;
                reply_to = if code == REPLY_SERIAL { Some(number) } else { reply_to };
            }
            "g" => {
                let found = reader.signature()?;
                signature = if code == SIGNATURE { found } else { signature };
            }
            "s" | "o" => {
                let text = reader.text()?;
                match code {
                    MEMBER => member = text,
                    ERROR_NAME => error_name = text,
                    _ => {}
                }
            }
            _ => return None,
        }
    }
    reader.align(8);
    for kind in signature.chars() {
        match kind {
            's' | 'o' => texts.push(reader.text()?),
            'u' | 'i' | 'b' => drop(reader.u32()?),
            // What follows is not for us.
            _ => break,
        }
    }
    Some(Message { kind, serial, reply_to, member, error_name, texts })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    is_big: bool,
}

impl<'a> Reader<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        match *bytes.first()? {
            LITTLE => Some(Reader { bytes, at: 0, is_big: false }),
            BIG => Some(Reader { bytes, at: 0, is_big: true }),
            _ => None,
        }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().ok()?;
        Some(if self.is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// With the zero that ends it.
    fn of_length(&mut self, length: usize) -> Option<String> {
        let text = self.take(length)?;
        self.take(1)?;
        String::from_utf8(text.to_owned()).ok()
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        self.of_length(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.u8()?.into();
        self.of_length(length)
    }
}
