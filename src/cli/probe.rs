//! `sluice probe`: asks one HTTP address until it says yes, for a cluster whose images hold no other client.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::Exit;
use crate::api;

/// Longest answer that is read: its first line is all that counts.
const ANSWER: u64 = 4096;
/// Longest time for each wait of one attempt, and the time between two attempts.
const ATTEMPT: Duration = Duration::from_secs(5);
const BETWEEN: Duration = Duration::from_millis(500);

/// What `sluice probe` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The address, http:// only
    #[arg(value_name = "URL", value_parser = parse)]
    pub url: Target,
    /// How long to go on asking; an attempt that has begun may take five seconds more
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub timeout: api::Duration,
}

/// A parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port, as a connection takes them.
    authority: String,
    path: String,
}

fn parse(url: &str) -> Result<Target, String> {
    let refuse = || format!("\"{url}\" is not an address: write http://host:port/path");
    let rest = url.strip_prefix("http://").ok_or_else(refuse)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.is_empty() || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(refuse());
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    Ok(Target { authority, path: if path.is_empty() { "/".to_owned() } else { path.to_owned() } })
}

/// Asks until the answer is a 2xx or the time is over, and says what came last.
///
/// # Errors
/// When the result cannot be printed.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> io::Result<Exit> {
    let end = Instant::now() + arguments.timeout.std();
    loop {
        let answer = ask(&arguments.url);
        let left = end.saturating_duration_since(Instant::now());
        match answer {
            Ok((true, line)) => {
                writeln!(out, "{line}")?;
                return Ok(Exit::Reached);
            }
            last if left.is_zero() => {
                let last = last.map_or_else(|error| error.to_string(), |(_, line)| line);
                writeln!(out, "not reached within {}: {last}", arguments.timeout)?;
                return Ok(Exit::TimedOut);
            }
            _ => thread::sleep(BETWEEN.min(left)),
        }
    }
}

/// One attempt: whether the answer is a 2xx, and its first line.
fn ask(target: &Target) -> io::Result<(bool, String)> {
    let address = target.authority.to_socket_addrs()?.next();
    let address = address.ok_or_else(|| io::Error::other(format!("{} has no address", target.authority)))?;
    let mut stream = TcpStream::connect_timeout(&address, ATTEMPT)?;
    stream.set_read_timeout(Some(ATTEMPT))?;
    stream.set_write_timeout(Some(ATTEMPT))?;
    let Target { authority, path } = target;
    // In one write: a server that answers after its first read must have read all of it.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().next().unwrap_or_default();
    let code = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).unwrap_or_default();
    if code.len() != 3 {
        return Err(io::Error::other("the answer is not HTTP"));
    }
    // What is not ready stands in the body.
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.trim()).unwrap_or_default();
    let said = if body.is_empty() { line.trim().to_owned() } else { format!("{}: {body}", line.trim()) };
    Ok((code.starts_with('2'), said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one connection after the other with the given texts.
    fn serve(answers: Vec<&'static str>) -> (String, thread::JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        let serving = thread::spawn(move || {
            let mut served = 0;
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let read = stream.read(&mut request).unwrap();
                assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:"));
                stream.write_all(answer.as_bytes()).unwrap();
                served += 1;
            }
            served
        });
        (url, serving)
    }

    fn probe(url: &str, timeout: &str) -> (Exit, String) {
        let arguments = Arguments { url: parse(url).unwrap(), timeout: timeout.parse().unwrap() };
        let mut out = Vec::new();
        let exit = run(&arguments, &mut out).unwrap();
        (exit, String::from_utf8(out).unwrap())
    }

    #[test]
    fn it_asks_until_the_answer_is_yes() {
        let (url, serving) = serve(vec![
            "HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: services\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n",
        ]);
        assert_eq!(probe(&url, "30s"), (Exit::Reached, "HTTP/1.1 200 OK: ready\n".to_owned()));
        assert_eq!(serving.join().unwrap(), 2);
    }

    #[test]
    fn when_time_is_over_it_says_what_came_last() {
        let (url, serving) = serve(vec!["HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: services\n"]);
        let (exit, said) = probe(&url, "0");
        assert_eq!(exit, Exit::TimedOut);
        assert_eq!(said, "not reached within 0s: HTTP/1.1 503 Service Unavailable: not ready: services\n");
        serving.join().unwrap();
        let (url, serving) = serve(vec!["SSH-2.0-OpenSSH\r\n"]);
        assert_eq!(probe(&url, "0").1, "not reached within 0s: the answer is not HTTP\n");
        serving.join().unwrap();
    }

    #[test]
    fn it_takes_only_what_it_can_ask() {
        for url in ["https://a/", "ftp://a", "http://", "http:///readyz", "readyz", "http://a b/"] {
            assert!(parse(url).is_err(), "{url}");
        }
        let expected = Target { authority: "sluice-metrics.ops.svc:80".into(), path: "/".into() };
        assert_eq!(parse("http://sluice-metrics.ops.svc"), Ok(expected));
    }
}
