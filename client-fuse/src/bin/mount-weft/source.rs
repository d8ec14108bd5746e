//! What is mounted: `HOST:PORT[,HOST:PORT...]/NAME`.

use anyhow::{Context, bail};
use std::net::{SocketAddr, ToSocketAddrs};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub addresses: Vec<SocketAddr>,
    pub name: String,
}

impl Source {
    /// Parses and resolves; names are looked up once.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let Some((hosts, name)) = text.rsplit_once('/') else {
            bail!("source '{text}': HOST:PORT[,HOST:PORT...]/NAME was expected, for example 10.0.0.1:7400/home");
        };
        if name.is_empty() {
            bail!("source '{text}' names no filesystem after the slash");
        }
        let mut addresses = Vec::new();
        for host in hosts.split(',') {
            let found = host.to_socket_addrs().with_context(|| format!("source '{text}': address '{host}'"))?;
            addresses.extend(found);
        }
        Ok(Self { addresses, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_a_name() -> anyhow::Result<()> {
        let source = Source::parse("127.0.0.1:7400,[::1]:7401/home")?;
        assert_eq!(source.name, "home");
        assert_eq!(source.addresses, ["127.0.0.1:7400".parse()?, "[::1]:7401".parse()?]);
        Ok(())
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for bad in ["", "home", "127.0.0.1:7400", "127.0.0.1:7400/", "127.0.0.1/home", ":/x", "/x"] {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
    }
}
