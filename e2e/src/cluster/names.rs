//! The cluster's names: answers for Services, as much of DNS as a pod needs, and nothing of the world outside.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use tokio::net::UdpSocket;
use tokio::sync::watch;

/// The domain of Services; the kubelet makes pods search it.
const DOMAIN: &str = ".svc.cluster.local";
const HEADER: usize = 12;
const ADDRESS: u16 = 1;
const INTERNET: u16 = 1;

/// What a name is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Found = 0,
    NoSuchName = 3,
}

/// Answers on `address` for as long as it runs.
pub async fn serve_names(client: Client, address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let (names, known) = watch::channel(HashMap::new());
    tokio::try_join!(follow(client, names), answer(socket, known)).map(drop)
}

/// Keeps the names of all Services up to date.
async fn follow(client: Client, names: watch::Sender<HashMap<String, Ipv4Addr>>) -> Result<()> {
    let (reader, writer) = reflector::store();
    let services = watcher(Api::<Service>::all(client), watcher::Config::default());
    let mut changes = services.default_backoff().reflect(writer).touched_objects().boxed();
    loop {
        match changes.try_next().await {
            Ok(Some(_)) => {
                names.send_replace(reader.state().iter().filter_map(|service| name(service)).collect());
            }
            Ok(None) => return Ok(()),
            // The API server may be paused or killed by a test; the watch goes on by itself.
            Err(_) => {}
        }
    }
}

/// A Service's name and address; none for one without an address of its own.
fn name(service: &Service) -> Option<(String, Ipv4Addr)> {
    let address = service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()?;
    let (name, namespace) = (service.metadata.name.as_ref()?, service.metadata.namespace.as_ref()?);
    Some((format!("{name}.{namespace}{DOMAIN}"), address))
}

async fn answer(socket: UdpSocket, known: watch::Receiver<HashMap<String, Ipv4Addr>>) -> Result<()> {
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        if let Some(reply) = reply(&buffer[..length], &known.borrow()) {
            // Whoever asked may be gone.
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

/// The answer to a query with one question; nothing for what is not one.
fn reply(query: &[u8], known: &HashMap<String, Ipv4Addr>) -> Option<Vec<u8>> {
    let header = query.get(..HEADER)?;
    let is_answer = header[2] & 0x80 != 0;
    if is_answer || header[4..6] != [0, 1] {
        return None;
    }
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(std::str::from_utf8(query.get(at..at + length)?).ok()?.to_ascii_lowercase());
        at += length;
    }
    let number = |at: usize| Some(u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]));
    let (kind, class) = (number(at)?, number(at + 2)?);
    let question = query.get(HEADER..at + 4)?;
    let found = known.get(&labels.join("."));
    // A known name without an address of the wanted kind exists all the same: its answer is empty, not a refusal.
    let address = found.filter(|_| kind == ADDRESS && class == INTERNET);
    let code = if found.is_some() { Code::Found } else { Code::NoSuchName };

    let mut reply = Vec::with_capacity(query.len() + 16);
    reply.extend(&header[..2]);
    // An answer, with authority; whether recursion was wanted is repeated, and it is there as far as it goes.
    reply.extend([0x84 | (header[2] & 1), 0x80 | code as u8]);
    reply.extend([0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    if let Some(address) = address {
        // The name of the question, an address of the internet, for five seconds, in four bytes.
        reply.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    fn known() -> HashMap<String, Ipv4Addr> {
        HashMap::from([("web.shop.svc.cluster.local".to_owned(), Ipv4Addr::new(10, 1, 2, 3))])
    }

    #[test]
    fn a_service_has_its_address_whatever_the_case() {
        let asked = query("Web.shop.svc.cluster.local", 1);
        let reply = reply(&asked, &known()).unwrap();
        assert_eq!(reply[..12], [0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(reply[12..asked.len()], asked[12..]);
        assert_eq!(reply[reply.len() - 4..], [10, 1, 2, 3]);
    }

    #[test]
    fn another_kind_of_address_is_empty_and_another_name_does_not_exist() {
        let empty = reply(&query("web.shop.svc.cluster.local", 28), &known()).unwrap();
        assert_eq!((empty[3] & 15, empty[7]), (0, 0));
        let none = reply(&query("example.org", 1), &known()).unwrap();
        assert_eq!((none[3] & 15, none[7]), (3, 0));
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        assert_eq!(reply(b"short", &known()), None);
        let mut cut = query("web.shop.svc.cluster.local", 1);
        cut.truncate(20);
        assert_eq!(reply(&cut, &known()), None);
        let mut answer = query("web.shop.svc.cluster.local", 1);
        answer[2] |= 0x80;
        assert_eq!(reply(&answer, &known()), None);
    }

    #[test]
    fn only_services_with_an_address_have_a_name() {
        let service = |address: &str| -> Service {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": address},
            }))
            .unwrap()
        };
        let expected = ("web.shop.svc.cluster.local".to_owned(), Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(name(&service("10.1.2.3")), Some(expected));
        assert_eq!(name(&service("None")), None);
    }
}
