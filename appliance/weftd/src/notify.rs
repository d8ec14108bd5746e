//! Tells the service manager how the daemon is doing: one datagram to the socket named in `NOTIFY_SOCKET`.
//!
//! Without that variable there is nobody to tell, and nothing happens. A service manager that can't be reached
//! must not stop the daemon, so failures are logged only.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    Stopping,
    /// One line for `systemctl status`.
    Status(String),
}

impl State {
    fn message(&self) -> String {
        match self {
            State::Ready => "READY=1".into(),
            State::Stopping => "STOPPING=1".into(),
            State::Status(line) => format!("STATUS={}", line.replace('\n', " ")),
        }
    }
}

pub fn notify(state: &State) {
    if let Some(address) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(address.as_bytes(), state)
    {
        tracing::warn!(%error, "can't tell the service manager");
    }
}

/// An address that starts with `@` is in the abstract namespace.
fn send(address: &[u8], state: &State) -> std::io::Result<()> {
    let address = match address.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.message().as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaches_an_abstract_socket() {
        let name = format!("weftd-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (state, expected) in [
            (State::Ready, "READY=1"),
            (State::Stopping, "STOPPING=1"),
            (State::Status("a\nREADY=1".into()), "STATUS=a READY=1"),
        ] {
            send(format!("@{name}").as_bytes(), &state).unwrap();
            let mut buffer = [0; 64];
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
    }

    #[test]
    fn says_when_nobody_listens() {
        assert!(send(b"/nowhere/at/all", &State::Ready).is_err());
    }
}
