//! The control API: one line of JSON for each command and each answer, over a Unix socket and over TCP.
//!
//! One command also comes as a datagram to the TCP address: a supervisor's word that its daemon has died.
//!
//! Threads of its own, blocking, away from the cores: a command is handed to the core by its mailbox. Over the Unix
//! socket everything is allowed (its mode says who may open it); over TCP a command must carry the node's or the
//! cluster's token.

use crate::node::Node;
use crate::word::DATAGRAM_BYTES_MAX;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use weft_reactor::Mailbox;
use weft_wire::control::{Answer, Command, Envelope, LINE_BYTES_MAX};

/// Connections served at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 32;
/// A connection that says nothing for so long is closed.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The core is given so long to answer.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// After an error of the socket on which words come.
const WORD_PAUSE: Duration = Duration::from_millis(10);

/// A command on its way to the core.
type Ask = Box<dyn Fn(Command, mpsc::SyncSender<Answer>) -> Result<(), String> + Send + Sync>;

struct Control {
    ask: Ask,
    /// The node's own, and the cluster's once it is in one.
    tokens: Tokens,
    connections: AtomicUsize,
}

/// Tokens that are taken over TCP; the core adds the cluster's when it knows it.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<Vec<String>>>);

impl Tokens {
    pub fn add(&self, token: String) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }

    fn takes(&self, token: Option<&str>) -> bool {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        token.is_some_and(|token| tokens.iter().any(|known| equal(known.as_bytes(), token.as_bytes())))
    }
}

/// In a time that does not tell where they differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

thread_local! {
    /// The node that runs on this thread.
    static NODE: std::cell::RefCell<Option<Rc<Node>>> = const { std::cell::RefCell::new(None) };
}

/// Makes the node on this core the one that commands are for.
pub fn attach(node: Rc<Node>) {
    NODE.with(|slot| *slot.borrow_mut() = Some(node));
}

/// A way to the node on the core of this mailbox.
fn ask_core(mailbox: Mailbox) -> Ask {
    Box::new(move |command, answer| {
        let message = move |handle: &weft_reactor::Handle| {
            let Some(node) = NODE.with(|slot| slot.borrow().clone()) else { return };
            let serve = async move {
                let done = node.command(command).await;
                // Whoever asked may have hung up.
                let _ = answer.try_send(done);
            };
            handle.spawn("control command", serve).detach();
        };
        mailbox.send(Box::new(message)).map_err(|error| error.to_string())
    })
}

/// Reads the token file, or makes one.
pub fn token(path: &Path) -> std::io::Result<String> {
    for _ in 0..2 {
        match std::fs::read_to_string(path) {
            Ok(token) if !token.trim().is_empty() => return Ok(token.trim().to_owned()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut random = [0u8; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        // Complete before it has its name: nodes that share the file may start at the same time.
        let fresh = path.with_extension(format!("new{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        writeln!(file, "{token}")?;
        let linked = std::fs::hard_link(&fresh, path);
        std::fs::remove_file(&fresh)?;
        match linked {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    std::fs::read_to_string(path).map(|token| token.trim().to_owned())
}

/// Listens on both and serves from threads that end with the process.
pub fn serve(socket: &Path, listener: TcpListener, tokens: Tokens, mailbox: Mailbox) -> std::io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let unix = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let control = Arc::new(Control { ask: ask_core(mailbox), tokens, connections: AtomicUsize::new(0) });
    let listen = listener.local_addr()?;
    match UdpSocket::bind(listen) {
        Ok(socket) => {
            let words = Arc::clone(&control);
            std::thread::Builder::new().name("control-words".into()).spawn(move || hear_words(&words, &socket))?;
        }
        Err(error) => {
            tracing::warn!(%listen, %error, "supervisors can't reach this node by datagram: deaths are noticed later");
        }
    }
    let local = Arc::clone(&control);
    std::thread::Builder::new().name("control-unix".into()).spawn(move || {
        for stream in unix.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(SILENCE_MAX));
            let Ok(reader) = stream.try_clone() else { continue };
            admit(&local, reader, stream, true);
        }
    })?;
    std::thread::Builder::new().name("control-tcp".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(SILENCE_MAX));
            let _ = stream.set_nodelay(true);
            let Ok(reader) = stream.try_clone() else { continue };
            admit(&control, reader, stream, false);
        }
    })?;
    Ok(())
}

/// Takes supervisors' words for as long as the process lives.
fn hear_words(control: &Control, socket: &UdpSocket) {
    let mut datagram = [0; DATAGRAM_BYTES_MAX];
    loop {
        match socket.recv(&mut datagram) {
            Ok(bytes) => hear_word(control, datagram.get(..bytes).unwrap_or_default()),
            // What an earlier datagram met, or nothing that lasts.
            Err(error) => {
                tracing::debug!(%error, "no word");
                std::thread::sleep(WORD_PAUSE);
            }
        }
    }
}

fn hear_word(control: &Control, datagram: &[u8]) {
    let Ok(envelope) = serde_json::from_slice::<Envelope>(datagram) else { return };
    if !matches!(envelope.command, Command::Died { .. }) || !control.tokens.takes(envelope.token.as_deref()) {
        return;
    }
    // Nobody waits for the answer.
    let (sender, _) = mpsc::sync_channel(1);
    let _ = (control.ask)(envelope.command, sender);
}

fn admit(
    control: &Arc<Control>,
    reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
    trusted: bool,
) {
    if control.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
        control.connections.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let own = Arc::clone(control);
    let spawned = std::thread::Builder::new().name("control".into()).spawn(move || {
        converse(&own, reader, writer, trusted);
        own.connections.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        control.connections.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!(%error, "a control connection can't be served");
    }
}

/// Serves commands until the other side hangs up.
fn converse(control: &Control, reader: impl Read, mut writer: impl Write, trusted: bool) {
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line);
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let answer = match serde_json::from_slice::<Envelope>(&line) {
            Err(error) => Answer::Refused(format!("the command can't be understood: {error}")),
            Ok(envelope) => serve_one(control, envelope, trusted),
        };
        let Ok(mut text) = serde_json::to_vec(&answer) else { return };
        text.push(b'\n');
        if writer.write_all(&text).and_then(|()| writer.flush()).is_err() {
            return;
        }
    }
}

fn serve_one(control: &Control, envelope: Envelope, trusted: bool) -> Answer {
    if !trusted && !control.tokens.takes(envelope.token.as_deref()) {
        return Answer::Refused("over TCP the node's or the cluster's token is needed: see --token-file".into());
    }
    if !trusted && matches!(envelope.command, Command::Token) {
        return Answer::Refused("the token is told over the Unix socket alone".into());
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    if let Err(error) = (control.ask)(envelope.command, sender) {
        return Answer::Refused(format!("the daemon takes no commands now: {error}"));
    }
    receiver
        .recv_timeout(ANSWER_MAX)
        .unwrap_or_else(|_| Answer::Refused(format!("the daemon did not answer within {} s", ANSWER_MAX.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(tokens: Tokens) -> Control {
        let ask: Ask = Box::new(|_, answer| {
            answer.try_send(Answer::Done).map_err(|error| error.to_string())?;
            Ok(())
        });
        Control { ask, tokens, connections: AtomicUsize::new(0) }
    }

    fn say(control: &Control, trusted: bool, text: &str) -> String {
        let mut out = Vec::new();
        converse(control, text.as_bytes(), &mut out, trusted);
        String::from_utf8(out).expect("JSON is text")
    }

    #[test]
    fn tcp_needs_a_token_and_nonsense_gets_an_answer() {
        let tokens = Tokens::default();
        tokens.add("secret".into());
        let control = control(tokens);
        assert_eq!(say(&control, true, "{\"command\":\"status\"}\n"), "\"done\"\n");
        assert!(say(&control, false, "{\"command\":\"status\"}\n").contains("token"));
        assert!(say(&control, false, "{\"token\":\"wrong!\",\"command\":\"status\"}\n").contains("token"));
        assert_eq!(say(&control, false, "{\"token\":\"secret\",\"command\":\"status\"}\n"), "\"done\"\n");
        assert!(say(&control, false, "{\"token\":\"secret\",\"command\":\"token\"}\n").contains("Unix socket"));
        assert!(say(&control, true, "nonsense\n").contains("can't be understood"));
    }

    #[test]
    fn a_datagram_brings_a_death_with_a_token_and_nothing_else() {
        use std::cell::Cell;
        let tokens = Tokens::default();
        tokens.add("secret".into());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let ask: Ask = Box::new(move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let control = Control { ask, tokens, connections: AtomicUsize::new(0) };
        let heard = Cell::new(0);
        let hear = |text: &str, taken: usize| {
            hear_word(&control, text.as_bytes());
            heard.set(heard.get() + taken);
            assert_eq!(asked.load(Ordering::Relaxed), heard.get(), "{text}");
        };
        hear(r#"{"token":"secret","command":{"died":{"node":1,"incarnation":2}}}"#, 1);
        hear(r#"{"token":"wrong!","command":{"died":{"node":1,"incarnation":2}}}"#, 0);
        hear(r#"{"command":{"died":{"node":1,"incarnation":2}}}"#, 0);
        hear(r#"{"token":"secret","command":"status"}"#, 0);
        hear("nonsense", 0);
    }

    #[test]
    fn a_token_file_is_made_once() {
        let path = std::env::temp_dir().join(format!("weftd-token-{}", std::process::id()));
        let first = token(&path).expect("made");
        assert_eq!(first.len(), 32);
        assert_eq!(token(&path).expect("read"), first);
        std::fs::remove_file(path).expect("there");
    }
}
