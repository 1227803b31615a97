//! One connection to systemd: its own socket, or else the system's bus.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;

use super::wire::{self, Address, Body, HEAD, Kind, Message};

/// For each single read and write.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Other messages that may come before an answer: on its own socket systemd tells of all it does.
const STRANGERS_MAX: usize = 10_000;
const MESSAGE_BYTES_MAX: usize = 1 << 20;
const AUTH_BYTES_MAX: u64 = 1024;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("no connection through {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("connection to systemd broke")]
    Io(#[from] io::Error),
    #[error("systemd does not speak as it should: {0}")]
    Protocol(&'static str),
    #[error("{name}: {text}")]
    Refused { name: String, text: String },
    #[error("job ended with {0:?}")]
    Job(String),
}

impl BusError {
    pub fn is(&self, name: &str) -> bool {
        matches!(self, BusError::Refused { name: refused, .. } if refused == name)
    }
}

pub struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
    /// There are others on the line, so systemd has to be named.
    is_shared: bool,
    /// Jobs that ended while an answer was waited for: path and result.
    ended: Vec<(String, String)>,
}

impl Bus {
    pub fn connect(run: &Path) -> Result<Self, BusError> {
        let own = run.join("systemd/private");
        match Bus::open(&own, false) {
            Err(BusError::Connect { .. }) => Bus::open(&run.join("dbus/system_bus_socket"), true),
            bus => bus,
        }
    }

    fn open(path: &Path, is_shared: bool) -> Result<Self, BusError> {
        let connected = UnixStream::connect(path);
        let stream = connected.map_err(|source| BusError::Connect { path: path.to_owned(), source })?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let mut bus = Bus { stream: BufReader::new(stream), serial: 0, is_shared, ended: Vec::new() };
        bus.authenticate()?;
        if is_shared {
            bus.join()?;
        }
        Ok(bus)
    }

    /// By our user id, which the socket itself tells the other side.
    fn authenticate(&mut self) -> Result<(), BusError> {
        let uid: String = geteuid().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        let mut answer = String::new();
        (&mut self.stream).take(AUTH_BYTES_MAX).read_line(&mut answer)?;
        if !answer.starts_with("OK ") {
            return Err(BusError::Protocol("it does not take us for whom we are"));
        }
        self.send(b"BEGIN\r\n")
    }

    /// On the bus we need a name, and have to ask for news of jobs.
    fn join(&mut self) -> Result<(), BusError> {
        let to_bus = |member| Address { destination: Some(BUS), path: BUS_PATH, interface: BUS, member };
        self.ask(&to_bus("Hello"), &Body::new())?;
        let rule = format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'");
        self.ask(&to_bus("AddMatch"), &Body::new().text(&rule))?;
        self.call("Subscribe", Body::new()).map(drop)
    }

    /// Calls a method of systemd's manager.
    pub fn call(&mut self, member: &str, body: Body) -> Result<Message, BusError> {
        let destination = self.is_shared.then_some(SYSTEMD);
        self.ask(&Address { destination, path: SYSTEMD_PATH, interface: MANAGER, member }, &body)
    }

    pub fn ping(&mut self) -> Result<(), BusError> {
        let destination = self.is_shared.then_some(SYSTEMD);
        let interface = "org.freedesktop.DBus.Peer";
        self.ask(&Address { destination, path: SYSTEMD_PATH, interface, member: "Ping" }, &Body::new()).map(drop)
    }

    /// Calls a method that begins a job, and waits until that has ended.
    pub fn run_job(&mut self, member: &str, body: Body) -> Result<(), BusError> {
        let answer = self.call(member, body)?;
        let job = answer.texts.into_iter().next().ok_or(BusError::Protocol("it does not name the job"))?;
        for _ in 0..STRANGERS_MAX {
            if let Some((_, result)) = self.ended.iter().find(|(path, _)| *path == job) {
                return if result == "done" { Ok(()) } else { Err(BusError::Job(result.clone())) };
            }
            let message = self.receive()?;
            self.note(message);
        }
        Err(BusError::Protocol("it does not tell of the job's end"))
    }

    fn ask(&mut self, to: &Address<'_>, body: &Body) -> Result<Message, BusError> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&wire::call(serial, to, body))?;
        for _ in 0..STRANGERS_MAX {
            let message = self.receive()?;
            match message.kind {
                Kind::Return if message.reply_to == Some(serial) => return Ok(message),
                Kind::Error if message.reply_to == Some(serial) => {
                    let text = message.texts.into_iter().next().unwrap_or_default();
                    return Err(BusError::Refused { name: message.error_name, text });
                }
                _ => self.note(message),
            }
        }
        Err(BusError::Protocol("it does not answer"))
    }

    /// `JobRemoved` has a number, the job, its unit and the result.
    fn note(&mut self, message: Message) {
        if message.kind == Kind::Signal
            && message.member == "JobRemoved"
            && let Ok([job, _, result]) = <[String; 3]>::try_from(message.texts)
        {
            self.ended.push((job, result));
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), BusError> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        let mut head = [0; HEAD];
        self.stream.read_exact(&mut head)?;
        let rest = wire::rest_length(&head).filter(|rest| *rest <= MESSAGE_BYTES_MAX);
        let mut message = head.to_vec();
        message.resize(HEAD + rest.ok_or(BusError::Protocol("a message is too long"))?, 0);
        self.stream.read_exact(&mut message[HEAD..])?;
        wire::parse(&message).ok_or(BusError::Protocol("a message makes no sense"))
    }
}
