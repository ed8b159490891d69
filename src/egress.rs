//! How foreign HTTP servers are asked: one client with the same guards for metrics, forges and receivers.
//!
//! An address is somebody's word, and what answers there is not trusted: no redirects, so that a credential stays
//! with the scheme, host and port it was given for; no link-local or metadata addresses; a cap on time and bytes. A
//! failure is a class in our own words. What the other side says is never repeated here, for a status would show a
//! tenant what an address answers that only the operator can reach.

use std::{
    error::Error as StdError,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use reqwest::{
    Certificate, Client, Response, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

/// The longest answer that is read, in bytes.
pub const MAX_BODY: usize = 1024 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How a client is made.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The address speaks TLS: only then are certificates loaded.
    pub encrypted: bool,
    /// How long one request may take, its answer included.
    pub timeout: Duration,
    /// The authorities to believe, as PEM certificates; those of the system when absent.
    pub authorities: Option<&'a str>,
    /// Whether the proxies of the environment are used. A proxy looks names up by itself.
    pub proxies: bool,
}

/// Why a client cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The authorities are none.
    #[error("ca.crt holds no certificate in PEM format")]
    Authorities,
    /// There is no TLS.
    #[error("no TLS client: are there CA certificates?")]
    Tls,
}

/// Why there is no answer, or only a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Not in time.
    #[error("no complete answer in time")]
    Timeout,
    /// No connection, or it broke.
    #[error("not reachable: {0}")]
    Unreachable(&'static str),
    /// More than [`MAX_BODY`].
    #[error("the answer is larger than {MAX_BODY} bytes")]
    TooLarge,
}

/// A client that follows no redirect and asks no forbidden address.
pub fn client(settings: Settings<'_>) -> Result<Client, ClientError> {
    let mut builder = Client::builder()
        .redirect(Policy::none())
        .dns_resolver(Arc::new(Resolver))
        .connect_timeout(CONNECT_TIMEOUT.min(settings.timeout))
        .timeout(settings.timeout)
        .pool_max_idle_per_host(4)
        .user_agent("sluice");
    if !settings.proxies {
        builder = builder.no_proxy();
    }
    if !settings.encrypted {
        // No certificates to load, and none to miss in a small image.
        builder = builder.tls_certs_only([]);
    } else if let Some(authorities) = settings.authorities {
        let certificates = Certificate::from_pem_bundle(authorities.as_bytes());
        let certificates = certificates.ok().filter(|found| !found.is_empty()).ok_or(ClientError::Authorities)?;
        // Only these, as git does: an authority of one's own replaces those of the system.
        builder = builder.tls_certs_only(certificates);
    }
    builder.build().map_err(|_| ClientError::Tls)
}

/// Whether an address may be asked at all; why not, when it may not. Names are looked at once more when they are
/// looked up.
pub fn check(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("may hold no user and no password");
    }
    let host = url.host_str().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if literal.is_ok_and(is_forbidden) {
        return Err("is a link-local or metadata address, which is never asked");
    }
    Ok(())
}

/// Reads a body up to [`MAX_BODY`], without believing the length it announces.
pub async fn read(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error))? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(Failure::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The class of a failed request, found in the chain of its causes. Their texts hold addresses and what the
/// other side said, and are not repeated.
pub fn failure(error: &(dyn StdError + 'static)) -> Failure {
    let mut cause = Some(error);
    let mut why = "the connection failed";
    while let Some(here) = cause {
        if here.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout) {
            return Failure::Timeout;
        }
        if let Some(refused) = here.downcast_ref::<ResolveError>() {
            why = refused.0;
        }
        if let Some(error) = here.downcast_ref::<io::Error>() {
            let error = innermost(error);
            why = match error.kind() {
                io::ErrorKind::ConnectionRefused => "connection refused",
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset",
                io::ErrorKind::UnexpectedEof => "the answer broke off",
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route to the host",
                io::ErrorKind::TimedOut => return Failure::Timeout,
                _ => why,
            };
            if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                why = match tls {
                    rustls::Error::InvalidCertificate(_) => "its TLS certificate is not accepted",
                    _ => "no TLS connection",
                };
            }
        }
        cause = here.source();
    }
    Failure::Unreachable(why)
}

/// An error in an error: its source is not the inner one but that one's source, so the chain skips it.
fn innermost(mut error: &io::Error) -> &io::Error {
    while let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>()) {
        error = inner;
    }
    error
}

/// Looks names up and leaves out what must not be asked. The connection goes to exactly these addresses, so
/// a name that changes between two look-ups gains nothing.
struct Resolver;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ResolveError(&'static str);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found: Vec<SocketAddr> = found.map_err(|_| ResolveError("its name does not resolve"))?.collect();
            let any = !found.is_empty();
            let allowed: Vec<SocketAddr> = found.into_iter().filter(|address| !is_forbidden(address.ip())).collect();
            if allowed.is_empty() {
                let why = "its name resolves to a link-local or metadata address, which is never asked";
                return Err(ResolveError(if any { why } else { "its name does not resolve" }).into());
            }
            let addresses: Addrs = Box::new(allowed.into_iter());
            Ok(addresses)
        })
    }
}

/// Link-local addresses, where clouds answer with credentials, and the metadata services outside of them.
fn is_forbidden(address: IpAddr) -> bool {
    const METADATA: [IpAddr; 3] = [
        IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
        IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    ];
    let address = address.to_canonical();
    let local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_unspecified() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_unspecified(),
    };
    local || address.is_multicast() || METADATA.contains(&address)
}
