//! HTTPS servers whose certificates an authority of one's own has signed.

use std::io::{Read, Write};
use std::net::TcpListener;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::git::Access;

const TIP: &str = "0123456789abcdef0123456789abcdef01234567";

/// A certificate authority, and a server's certificate that it has signed.
struct Authority {
    certificate: String,
    server: Arc<rustls::ServerConfig>,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let openssl = |arguments: &str| {
            run(Command::new("openssl").current_dir(&directory).args(arguments.split_whitespace()));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=authority -days 2"));
        openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
        fs::write(directory.path().join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -extfile names");
        let at = |name: &str| directory.path().join(name);
        let chain = vec![CertificateDer::from_pem_file(at("server.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(at("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let server = server.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Self { certificate: fs::read_to_string(at("ca.crt")).unwrap(), server: Arc::new(server) }
    }

    /// The address of a server that has one branch, `main`, for whoever believes its certificate.
    fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/shop.git", listener.local_addr().unwrap());
        let server = self.server.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let connection = rustls::ServerConnection::new(server.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, socket.unwrap());
                let mut request = [0; 4096];
                // Whoever does not believe the certificate asks nothing.
                if stream.read(&mut request).is_ok_and(|length| length > 0) {
                    let body = format!("{TIP}\trefs/heads/main\n");
                    let head =
                        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
                    stream.conn.send_close_notify();
                    stream.flush().unwrap();
                }
            }
        });
        url
    }
}

fn believing(authorities: &str) -> Access {
    Access { credentials: basic(), authorities: Some(authorities.to_owned()) }
}

#[tokio::test]
async fn a_server_is_believed_by_the_authorities_that_are_given_and_by_no_others() {
    let (own, another) = (Authority::new(), Authority::new());
    let url = own.serve();
    let place = Place::new();
    let cache = place.cache();
    let head = async |access: Access| cache.repository(&url, access).unwrap().remote_head("main").await;
    assert_eq!(head(believing(&own.certificate)).await.unwrap().as_deref(), Some(TIP));
    let both = format!("{}\r\n{}", another.certificate.replace('\n', "\r\n"), own.certificate.trim_end());
    assert_eq!(head(believing(&both)).await.unwrap().as_deref(), Some(TIP), "a bundle, as editors leave it");
    for access in [basic().into(), believing(&another.certificate)] {
        let error = head(access).await.unwrap_err();
        assert_eq!(error.reason(), "CertificateNotTrusted", "{error}");
        assert!(error.to_string().contains("ca.crt") && !error.is_transient(), "{error}");
    }
}

#[tokio::test]
async fn authorities_are_a_file_that_goes_with_its_user_and_the_system_is_not_asked() {
    let own = Authority::new();
    let place = Place::new();
    let cache = place.cache();
    let repository = cache.repository("https://git.example/shop", believing(&own.certificate)).unwrap();
    let git = repository.remote.git(None, Path::new("/nonexistent"));
    let variable = |name: &str| {
        let found = git.environment.iter().find(|(variable, _)| variable == name).unwrap();
        PathBuf::from(&found.1)
    };
    let (bundle, directory) = (variable("GIT_SSL_CAINFO"), variable("GIT_SSL_CAPATH"));
    assert_eq!(fs::read_to_string(&bundle).unwrap(), own.certificate);
    assert_eq!(bundle.parent(), Some(directory.as_path()), "no other authority is there");
    drop(repository);
    assert!(!directory.exists());
    // Without TLS there is nothing to believe: the same Secret may serve the forge's API as well.
    cache.repository("http://git.example/shop", believing(&own.certificate)).unwrap();
}

#[test]
fn what_is_no_certificate_is_refused_by_its_key() {
    let own = Authority::new();
    let place = Place::new();
    let cache = place.cache();
    let broken = own.certificate.replace("MII", "!!!");
    let key = format!("{}-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n", own.certificate);
    for authorities in ["", "/etc/ssl/certs", &broken, &key] {
        let access = believing(authorities);
        assert!(!leaks(&format!("{access:?}")));
        let error = cache.repository("https://git.example/shop", access).err().unwrap();
        assert_eq!(error.reason(), "InvalidCredentials", "{authorities}");
        assert!(error.to_string().contains("\"ca.crt\"") && !leaks(&error.to_string()), "{error}");
    }
}
