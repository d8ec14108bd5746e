//! One command to one node and its answer: a line of JSON each way, over a Unix socket or over TCP with the token.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};
use weft_wire::control::{Answer, Command, Envelope, LINE_BYTES_MAX, Status};

/// Longest token file that is read.
const TOKEN_BYTES_MAX: u64 = 4096;
const READ_BYTES: usize = 64 << 10;

/// Where a node takes commands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

impl FromStr for Endpoint {
    type Err = String;

    /// `HOST:PORT`; what has a slash is the path of a Unix socket.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(1..)) => Ok(Self::Tcp(text.into())),
            _ => Err(format!("{text:?} is not of the form HOST:PORT, for example 127.0.0.1:7100")),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It lies with this side: nothing can be said about the node.
    #[error("{0}")]
    NotAsked(String),
    /// The node is away, or what answers is no node.
    #[error("{0}")]
    NoAnswer(String),
    /// The node is there and says no.
    #[error("{0}")]
    Refused(String),
}

/// How nodes are reached: the first by its own address, the others by those in the map.
pub struct Access {
    pub first: Endpoint,
    token: Result<String, CallError>,
}

impl Access {
    pub fn new(first: Endpoint, token_file: &Path) -> Self {
        Self { first, token: read_token(token_file).map_err(CallError::NotAsked) }
    }

    /// Takes the cluster's token from the first node if that may be asked; all nodes of its cluster take it. Whether
    /// that changed anything.
    pub fn adopt_cluster_token(&mut self, timeout: Duration) -> bool {
        let Endpoint::Unix(_) = self.first else { return false };
        let Ok(Answer::Token(token)) = self.call(&self.first, Command::Token, timeout) else { return false };
        let before = std::mem::replace(&mut self.token, Ok(token));
        before != self.token
    }

    /// Sends a command and waits for its answer for at most `timeout`. A refusal is an error.
    pub fn call(&self, to: &Endpoint, command: Command, timeout: Duration) -> Result<Answer, CallError> {
        let deadline = Instant::now() + timeout;
        let answer = match to {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(|error| unix_failed(path, &error))?;
                exchange(stream, to, Envelope { token: None, command }, deadline)
            }
            Endpoint::Tcp(address) => {
                let token = Some(self.token.clone()?);
                let stream = connect_tcp(address, deadline)?;
                exchange(stream, to, Envelope { token, command }, deadline)
            }
        };
        match answer? {
            Answer::Refused(reason) => Err(CallError::Refused(reason)),
            answer => Ok(answer),
        }
    }

    pub fn status(&self, to: &Endpoint, timeout: Duration) -> Result<Status, CallError> {
        match self.call(to, Command::Status, timeout)? {
            Answer::Status(status) => Ok(*status),
            _ => Err(unexpected(to)),
        }
    }
}

/// The answer to another command than the one that was sent.
pub fn unexpected(to: &Endpoint) -> CallError {
    CallError::NoAnswer(format!("{to} answered something else than it was asked; is weft as new as weftd?"))
}

fn read_token(path: &Path) -> Result<String, String> {
    let hint = "copy it from a node's state directory, or name another with --token-file";
    let failed = |error: std::io::Error| format!("can't read the token file {}: {error}; {hint}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    match text.trim() {
        "" => Err(format!("the token file {} is empty; {hint}", path.display())),
        token => Ok(token.to_owned()),
    }
}

fn unix_failed(path: &Path, error: &std::io::Error) -> CallError {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => CallError::NoAnswer(format!(
            "there is no control socket {path}: start weftd, or name its socket with --socket (control_socket in its configuration)"
        )),
        ErrorKind::PermissionDenied => {
            CallError::NotAsked(format!("no permission to use {path}: run weft as root or as weftd's user"))
        }
        ErrorKind::ConnectionRefused => CallError::NoAnswer(format!("nobody listens on {path}: start weftd")),
        _ => CallError::NoAnswer(format!("can't connect to {path}: {error}")),
    }
}

fn connect_tcp(address: &str, deadline: Instant) -> Result<TcpStream, CallError> {
    let resolved = address.to_socket_addrs().map_err(|error| {
        CallError::NotAsked(format!("{address} can't be resolved: {error}; give an address of the form HOST:PORT"))
    })?;
    let mut failed = CallError::NotAsked(format!("{address} has no address"));
    for resolved in resolved {
        match TcpStream::connect_timeout(&resolved, left(deadline)) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                failed = CallError::NoAnswer(format!("can't connect to {resolved}: {}", word(&error)));
            }
        }
    }
    Err(failed)
}

/// Never zero, which would mean "for ever" to a socket.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn word(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "nobody listens there".into(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timed out".into(),
        _ => error.to_string(),
    }
}

trait Stream: Read + Write {
    fn limit(&self, timeout: Duration) -> std::io::Result<()>;
}

impl Stream for UnixStream {
    fn limit(&self, timeout: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(timeout)).and_then(|()| self.set_write_timeout(Some(timeout)))
    }
}

impl Stream for TcpStream {
    fn limit(&self, timeout: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(timeout)).and_then(|()| self.set_write_timeout(Some(timeout)))
    }
}

fn exchange<S: Stream>(
    mut stream: S,
    to: &Endpoint,
    envelope: Envelope,
    deadline: Instant,
) -> Result<Answer, CallError> {
    let failed = |what: &str, error: &std::io::Error| CallError::NoAnswer(format!("{to}: {what}: {}", word(error)));
    let mut line = serde_json::to_vec(&envelope)
        .map_err(|error| CallError::NotAsked(format!("the command can't be written as JSON: {error}")))?;
    line.push(b'\n');
    if line.len() > LINE_BYTES_MAX {
        return Err(CallError::NotAsked(format!("the command is longer than {LINE_BYTES_MAX} bytes")));
    }
    stream.limit(left(deadline)).map_err(|error| failed("the command was not sent", &error))?;
    stream.write_all(&line).map_err(|error| failed("the command was not sent", &error))?;
    let answer = read_line(&mut stream, to, deadline)?;
    serde_json::from_slice(&answer).map_err(|error| {
        CallError::NoAnswer(format!(
            "{to}: the answer is not that of a node of this version ({error}); is weft as new as weftd?"
        ))
    })
}

fn read_line<S: Stream>(stream: &mut S, to: &Endpoint, deadline: Instant) -> Result<Vec<u8>, CallError> {
    let mut line = Vec::new();
    let mut chunk = vec![0; READ_BYTES];
    loop {
        if Instant::now() >= deadline {
            return Err(CallError::NoAnswer(format!("{to}: no answer in time")));
        }
        let read = stream.limit(left(deadline)).and_then(|()| stream.read(&mut chunk));
        let bytes = match read {
            Ok(0) => {
                return Err(CallError::NoAnswer(format!("{to}: the node closed the connection without an answer")));
            }
            Ok(bytes) => &chunk[..bytes],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(CallError::NoAnswer(format!("{to}: no answer: {}", word(&error)))),
        };
        match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                line.extend_from_slice(&bytes[..end]);
                return Ok(line);
            }
            None => line.extend_from_slice(bytes),
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(CallError::NoAnswer(format!("{to}: the answer is longer than {LINE_BYTES_MAX} bytes")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read() {
        assert_eq!("127.0.0.1:7100".parse(), Ok(Endpoint::Tcp("127.0.0.1:7100".into())));
        assert_eq!("[::1]:7100".parse(), Ok(Endpoint::Tcp("[::1]:7100".into())));
        assert_eq!("./control.sock".parse(), Ok(Endpoint::Unix("./control.sock".into())));
        for wrong in ["127.0.0.1", ":7100", "host:", "host:x", "host:0", "host:70000"] {
            assert!(wrong.parse::<Endpoint>().unwrap_err().contains("HOST:PORT"), "{wrong}");
        }
    }
}
