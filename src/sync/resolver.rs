//! What the node itself asks for names, from which pods start.

use std::path::PathBuf;

use crate::causes::chain;
use crate::host::Host;
use crate::pod::dns::{Resolver, parse_resolv_conf};

/// Upstream's limit for the resolver file.
const RESOLV_CONF_BYTES_MAX: usize = 10 << 20;

#[derive(Clone, Debug)]
pub enum HostResolver {
    /// Read anew for each sandbox: a lease or a tunnel may bring other name servers at any time.
    File(PathBuf),
    Fixed(Resolver),
}

impl HostResolver {
    /// As it is now, or why nobody can tell, in upstream's words.
    pub async fn read(&self, host: &dyn Host) -> Result<Resolver, String> {
        let path = match self {
            HostResolver::File(path) => path,
            HostResolver::Fixed(resolver) => return Ok(resolver.clone()),
        };
        match host.read_file(path, RESOLV_CONF_BYTES_MAX).await {
            Ok(Some(text)) => Ok(parse_resolv_conf(&String::from_utf8_lossy(&text))),
            Ok(None) => Err(format!("open {}: no such file or directory", path.display())),
            Err(error) => Err(chain(&error)),
        }
    }
}
