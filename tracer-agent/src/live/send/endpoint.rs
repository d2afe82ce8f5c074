//! Where spans are sent to, and how: what flags and the environment say, checked.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use url::Url;

/// How long one request may take (the specification's default).
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of spans that may wait.
pub const QUEUE: usize = 16 << 20;

const QUEUE_MIN: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    Grpc,
    #[value(name = "http/protobuf")]
    Http,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    #[default]
    None,
    Gzip,
}

/// What is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signal {
    #[default]
    Traces,
    Metrics,
}

impl Signal {
    /// Where a receiver takes it over HTTP, below its URL.
    fn path(self) -> &'static str {
        match self {
            Signal::Traces => "/v1/traces",
            Signal::Metrics => "/v1/metrics",
        }
    }

    pub(super) fn method(self) -> &'static str {
        match self {
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        }
    }

    /// What it consists of, for people.
    pub(super) fn items(self) -> &'static str {
        match self {
            Signal::Traces => "spans",
            Signal::Metrics => "points",
        }
    }
}

/// What was said of a receiver.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub signal: Signal,
    pub url: String,
    /// The URL is that of the spans, not the base that all signals have in common.
    pub exact: bool,
    pub protocol: Option<Protocol>,
    /// Without TLS, where the URL does not say.
    pub insecure: Option<bool>,
    pub headers: Vec<(String, String)>,
    pub compression: Compression,
    pub timeout: Option<Duration>,
    /// Authorities to trust beside the system's (PEM).
    pub certificate: Option<PathBuf>,
    /// By which the tracer shows who it is (PEM).
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub queue: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(super) signal: Signal,
    pub(super) url: Url,
    pub(super) protocol: Protocol,
    pub(super) headers: Vec<(String, String)>,
    pub(super) compression: Compression,
    pub(super) timeout: Duration,
    pub(super) queue: usize,
    pub(super) tls: Option<Tls>,
}

/// What TLS needs.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub(super) roots: RootCertStore,
    /// Certificates and key, in PEM.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Endpoint {
    /// Without a protocol the port tells, as far as it is one of the two that OTLP has.
    pub fn new(said: &Said) -> Result<Self> {
        let text = match said.insecure {
            _ if said.url.contains("://") => said.url.clone(),
            Some(true) => format!("http://{}", said.url),
            Some(false) => format!("https://{}", said.url),
            None => {
                bail!("`{}` is not a URL: begin it with http://, or with https:// for TLS", said.url)
            }
        };
        let mut url = Url::parse(&text).map_err(|error| anyhow!("`{}` is not a URL: {error}", said.url))?;
        ensure!(
            matches!(url.scheme(), "http" | "https") && url.has_host(),
            "`{}` is not a URL of the form http://HOST:PORT or https://HOST:PORT",
            said.url
        );
        ensure!(
            url.username().is_empty() && url.password().is_none(),
            "the URL holds a password: give it as a header (--otlp-header 'authorization=Basic …')"
        );
        let protocol = said.protocol.unwrap_or(match url.port() {
            Some(4317) => Protocol::Grpc,
            _ => Protocol::Http,
        });
        if protocol == Protocol::Http && !said.exact {
            let path = format!("{}{}", url.path().trim_end_matches('/'), said.signal.path());
            url.set_path(&path);
        }
        let tls = if url.scheme() == "https" {
            Some(Tls::new(said)?)
        } else if said.certificate.is_some() || said.client_certificate.is_some() || said.client_key.is_some()
        {
            bail!("certificates are for https://, and `{}` is not", said.url);
        } else {
            None
        };
        for (name, value) in &said.headers {
            let fine = http_name(name) && value.bytes().all(|byte| (32..127).contains(&byte));
            ensure!(fine, "`{name}` is no name of a header, or its value is no text");
        }
        let queue = said.queue.unwrap_or(QUEUE);
        ensure!(queue >= QUEUE_MIN, "--otlp-queue takes {} KiB or more", QUEUE_MIN >> 10);
        let timeout = said.timeout.unwrap_or(TIMEOUT);
        ensure!(!timeout.is_zero(), "a timeout of 0 lets nothing be sent");
        Ok(Self {
            signal: said.signal,
            url,
            protocol,
            headers: said.headers.clone(),
            compression: said.compression,
            timeout,
            queue,
            tls,
        })
    }

    /// For people.
    pub fn shown(&self) -> String {
        self.url.to_string().trim_end_matches('/').to_owned()
    }
}

fn http_name(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(token)
}

impl Tls {
    fn new(said: &Said) -> Result<Self> {
        let identity = match (&said.client_certificate, &said.client_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (None, None) => None,
            _ => bail!("a client's certificate and its key belong together: one of them is missing"),
        };
        let tls = Self { roots: roots(said.certificate.as_deref())?, identity };
        // What does not fit together is told now, not with the first request.
        tls.client().context("the certificates for the receiver cannot be used")?;
        Ok(tls)
    }

    pub(super) fn client(&self) -> Result<ClientConfig> {
        let provider = rustls::crypto::ring::default_provider().into();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone());
        Ok(match &self.identity {
            Some((certificates, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
            }
            None => builder.with_no_client_auth(),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// The system's, and those in the file.
fn roots(file: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = file {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(&read(path)?) {
            let broken = || format!("{} holds no certificates in PEM", path.display());
            roots.add(certificate.with_context(broken)?).with_context(broken)?;
        }
        ensure!(roots.len() > before, "{} holds no certificates in PEM", path.display());
    }
    ensure!(
        !roots.is_empty(),
        "this machine has no certificates of authorities (package ca-certificates): name a file with \
         --otlp-certificate"
    );
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str, change: impl FnOnce(&mut Said)) -> Result<(String, Protocol)> {
        let mut said = Said { url: url.to_owned(), ..Said::default() };
        change(&mut said);
        Endpoint::new(&said).map(|endpoint| (endpoint.shown(), endpoint.protocol))
    }

    #[test]
    fn urls_are_what_the_specification_says() {
        let url = |url: &str| endpoint(url, |_| ()).unwrap();
        assert_eq!(url("http://a:4318"), ("http://a:4318/v1/traces".to_owned(), Protocol::Http));
        assert_eq!(url("http://a/base/"), ("http://a/base/v1/traces".to_owned(), Protocol::Http));
        assert_eq!(url("http://a:4317"), ("http://a:4317".to_owned(), Protocol::Grpc));
        let exact = endpoint("http://a/own?x=1", |said| said.exact = true).unwrap();
        assert_eq!(exact, ("http://a/own?x=1".to_owned(), Protocol::Http));
        let insecure = endpoint("a:4317", |said| said.insecure = Some(true)).unwrap();
        assert_eq!(insecure, ("http://a:4317".to_owned(), Protocol::Grpc));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_reason() {
        let why = |url: &str, change: fn(&mut Said)| format!("{:#}", endpoint(url, change).unwrap_err());
        assert!(why("ftp://a", |_| ()).contains("is not a URL of the form"));
        assert!(why("http://", |_| ()).contains("is not a URL"));
        assert!(why("a:4317", |_| ()).contains("is not a URL: begin"));
        assert!(why("http://a", |said| said.queue = Some(1)).contains("64 KiB or more"));
        assert!(why("http://me:secret@a", |_| ()).contains("--otlp-header"));
        assert!(!why("http://me:secret@a", |_| ()).contains("secret"));
        let header = |said: &mut Said| said.headers.push(("a b".into(), "c".into()));
        assert!(why("http://a", header).contains("no name of a header"));
        let certificate = |said: &mut Said| said.certificate = Some("/dev/null".into());
        assert!(why("http://a", certificate).contains("for https"));
        assert!(why("https://a", certificate).contains("no certificates in PEM"));
        let half = |said: &mut Said| said.client_key = Some("/dev/null".into());
        assert!(why("https://a", half).contains("belong together"));
    }
}
